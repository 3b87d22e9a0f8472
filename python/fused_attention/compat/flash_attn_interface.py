"""flash-attn 3's functions, with its names, argument order, defaults and conventions.

    from fused_attention.compat import flash_attn_interface

They share their names with flash_attn 2 but not the order of their arguments: the fourth is
softmax_scale here and dropout_p there. There is no dropout and no ALiBi. What only steers the
original's kernels (num_splits, pack_gqa, sm_margin, scheduler_metadata) is accepted and ignored.
"""

from __future__ import annotations

from torch import Tensor

from fused_attention.compat.attend import Features, attend, dense_forward, no_fp8
from fused_attention.compat.cached_attention import Queries, attend_rows
from fused_attention.compat.conventions import Window, split_stack
from fused_attention.compat.flash_attn_3_cache import (
    flash_attn_combine,
    flash_attn_with_kvcache,
    get_scheduler_metadata,
)
from fused_attention.compat.flash_attn_3_low_level import (
    _flash_attn_backward,
    _flash_attn_forward,
    packed_attention,
    with_qv,
)
from fused_attention.compat.spans import Spans, spans_of_rows, split_chunks

__all__ = [
    "_flash_attn_backward",
    "_flash_attn_forward",
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]

Result = Tensor | tuple[Tensor, Tensor]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of [batch, seqlen, heads, head_dim] tensors.

    Args:
        q: [batch, seqlen_q, heads, head_dim] in fp64, fp32, bf16 or fp16.
        k: [batch, seqlen_k, heads_k, head_dim]; heads_k divides heads.
        v: [batch, seqlen_k, heads_k, head_dim_v].
        softmax_scale: default 1 / sqrt(head_dim), with qv 1 / sqrt(head_dim + head_dim_v).
        causal: query i sees key j if j <= i + seqlen_k - seqlen_q (bottom-right).
        qv: [batch, seqlen_q, heads, head_dim_v]; qv @ v^T is added to q @ k^T.
        q_descale, k_descale, v_descale: must be None; fp8 is not supported.
        window_size: (left, right), both inclusive, negative is unbounded; see flash_attn 2.
        attention_chunk: a query sees only keys of its own chunk of so many positions; 0 is none.
            With it the keys' lengths are read, which on a GPU waits.
        softcap: scores become softcap * tanh(scores / softcap); 0 is none.
        deterministic: refuse backends whose gradients vary from run to run.
        return_attn_probs: also return lse.

    Returns:
        out [batch, seqlen_q, heads, head_dim_v]; with return_attn_probs also
        lse [batch, heads, seqlen_q] in fp32 (fp64 for fp64), -inf where a query sees no key.

    Raises:
        TypeError, ValueError: as `fused_attention.attention`.
        NotImplementedError: fp8.
    """
    no_fp8(q_descale, k_descale, v_descale)
    features = Features(0.0, softmax_scale, causal, window_size, softcap, None, deterministic)
    q, k = with_qv(q, k, v, qv)
    if attention_chunk:
        q_ends = spans_of_rows(q.shape[0], q.shape[1], q.device)
        k_ends = spans_of_rows(k.shape[0], k.shape[1], k.device)
        spans = split_chunks(Spans(*q_ends, *k_ends), attention_chunk)
        found = attend_rows(Queries(q), k, v, spans, features.options())
    elif return_attn_probs:
        found = dense_forward(q, k, v, features, with_pattern=False)[:2]
    else:
        return attend(q, k, v, features)
    return found if return_attn_probs else found[0]


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Result:
    """`flash_attn_func` with qkv in one tensor.

    Args:
        qkv: [batch, seqlen, 3, heads, head_dim] or, with num_heads_q,
            [batch, seqlen, num_heads_q + 2 * heads_k, head_dim].
    """
    if qkv.dim() == 4 and num_heads_q is not None and num_heads_q < qkv.shape[2]:
        heads_k = (qkv.shape[2] - num_heads_q) // 2
        q, k, v = qkv.split([num_heads_q, heads_k, heads_k], dim=2)
    else:
        q, k, v = split_stack("qkv", qkv, "[batch, seqlen, 3, heads, head_dim]")
    return flash_attn_func(
        q,
        k,
        v,
        softmax_scale,
        causal,
        None,
        q_descale,
        k_descale,
        v_descale,
        window_size,
        attention_chunk,
        softcap,
        deterministic=deterministic,
        return_attn_probs=return_attn_probs,
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Result:
    """Attention within each of the sequences that stand one after the other, without padding.

    Args:
        q: [total_q, heads, head_dim].
        k: [total_k, heads_k, head_dim].
        v: [total_k, heads_k, head_dim_v].
        cu_seqlens_q: integer [batch + 1], where each query sequence begins and ends.
        cu_seqlens_k: the same for keys and values.
        max_seqlen_q: the longest query sequence, or more.
        max_seqlen_k: the longest key sequence, or more.
        seqused_q: integer [batch], how many queries of each sequence count.
        seqused_k: the same for keys and values.
        qv: [total_q, heads, head_dim_v].

    The others are those of `flash_attn_func`.

    Returns:
        out [total_q, heads, head_dim_v], 0 where no sequence is; with return_attn_probs also
        lse [heads, total_q].
    """
    no_fp8(q_descale, k_descale, v_descale)
    found = packed_attention(
        q,
        k,
        v,
        (cu_seqlens_q, cu_seqlens_k),
        max_seqlen_q,
        max_seqlen_k,
        (seqused_q, seqused_k),
        qv,
        Features(0.0, softmax_scale, causal, window_size, softcap, None, deterministic),
        attention_chunk,
    )
    return found if return_attn_probs else found[0]
