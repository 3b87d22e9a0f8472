"""The seven functions of flash_attn 2, with its names, argument order, defaults and conventions.

    from fused_attention.compat.flash_attn import flash_attn_func

On every device and in every dtype that this package has: also on CPUs, in fp32 and fp64, with head
dims that the original refuses. docs/flash_attn.md says what differs.
"""

from __future__ import annotations

from torch import Tensor

from fused_attention.compat.attend import (
    Features,
    attend,
    attend_varlen,
    dense_forward,
    packed_forward,
)
from fused_attention.compat.conventions import Window, split_stack
from fused_attention.compat.flash_attn_2_cache import flash_attn_with_kvcache
from fused_attention.compat.flash_attn_2_low_level import (
    USE_TRITON_ROCM,
    _flash_attn_backward,
    _flash_attn_forward,
    _flash_attn_varlen_backward,
    _flash_attn_varlen_forward,
    _get_block_size_n,
    attend_apart,
)

__all__ = [
    "USE_TRITON_ROCM",
    "_flash_attn_backward",
    "_flash_attn_forward",
    "_flash_attn_varlen_backward",
    "_flash_attn_varlen_forward",
    "_get_block_size_n",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]

__version__ = "2.8.4"  # of the original whose interface this is

Result = Tensor | tuple[Tensor, Tensor, Tensor]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """Attention of [batch, seqlen, heads, head_dim] tensors.

    Args:
        q: [batch, seqlen_q, heads, head_dim] in fp64, fp32, bf16 or fp16.
        k: [batch, seqlen_k, heads_k, head_dim]; heads_k divides heads.
        v: [batch, seqlen_k, heads_k, head_dim_v].
        dropout_p: chance in [0, 1) that a probability is dropped; the mask follows
            torch.manual_seed.
        softmax_scale: default 1 / sqrt(head_dim).
        causal: query i sees key j if j <= i + seqlen_k - seqlen_q (bottom-right).
        window_size: (left, right), both inclusive and counted from key i + seqlen_k - seqlen_q;
            negative is unbounded. Ints or an integer tensor of two; causal makes the right one 0.
        softcap: scores become softcap * tanh(scores / softcap); 0 or less is none.
        alibi_slopes: [heads] or [batch, heads]; adds -slope * |i + seqlen_k - seqlen_q - j|.
        deterministic: refuse backends whose gradients vary from run to run.
        return_attn_probs: also return lse and S_dmask.

    Returns:
        out [batch, seqlen_q, heads, head_dim_v]; with return_attn_probs (out, lse, S_dmask).
        lse: [batch, heads, seqlen_q] in fp32 (fp64 for fp64), natural log, differentiable; -inf
            where a query sees no key.
        S_dmask: [batch, heads, seqlen_q, seqlen_k] in q's dtype, exp(score - the row's largest)
            with a minus where dropout took it; without dropout an empty tensor.

    Raises:
        TypeError, ValueError: as `fused_attention.attention`.
    """
    features = Features(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic
    )
    return _dense(q, k, v, features, return_attn_probs)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """`flash_attn_func` with kv [batch, seqlen_k, 2, heads_k, head_dim]."""
    k, v = split_stack("kv", kv, "[batch, seqlen, 2, heads_k, head_dim]")
    features = Features(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic
    )
    return _dense(q, k, v, features, return_attn_probs)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """`flash_attn_func` with qkv [batch, seqlen, 3, heads, head_dim]."""
    q, k, v = split_stack("qkv", qkv, "[batch, seqlen, 3, heads, head_dim]")
    features = Features(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic
    )
    return _dense(q, k, v, features, return_attn_probs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Result:
    """Attention within each of the sequences that stand one after the other, without padding.

    Args:
        q: [total_q, heads, head_dim].
        k: [total_k, heads_k, head_dim]; with block_table [pages, page_size, heads_k, head_dim].
        v: like k, with head_dim_v.
        cu_seqlens_q: integer [batch + 1], where each query sequence begins and ends.
        cu_seqlens_k: the same for keys and values.
        max_seqlen_q: the longest query sequence, or more.
        max_seqlen_k: the longest key sequence, or more.
        block_table: integer [batch, pages of a sequence], the pages of each sequence in order; any
            page size.

    The others are those of `flash_attn_func`.

    Returns:
        out [total_q, heads, head_dim_v], 0 beyond the last sequence; with return_attn_probs
        (out, lse [heads, total_q], S_dmask [batch, heads, max_seqlen_q, max_seqlen_k]).

    Raises:
        TypeError, ValueError: as `fused_attention.attention_varlen`.
        RuntimeError: a sequence is longer than its pages.
    """
    features = Features(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic
    )
    cu_seqlens, max_seqlens = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    if block_table is None:
        return _varlen(q, k, v, cu_seqlens, max_seqlens, features, return_attn_probs)
    found = attend_apart(q, k, v, cu_seqlens, max_seqlens, features, return_attn_probs, block_table)
    return found[:3] if return_attn_probs else found.out


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """`flash_attn_varlen_func` with kv [total_k, 2, heads_k, head_dim]."""
    k, v = split_stack("kv", kv, "[total, 2, heads_k, head_dim]")
    features = Features(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic
    )
    cu_seqlens, max_seqlens = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    return _varlen(q, k, v, cu_seqlens, max_seqlens, features, return_attn_probs)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """`flash_attn_varlen_func` with qkv [total, 3, heads, head_dim]."""
    q, k, v = split_stack("qkv", qkv, "[total, 3, heads, head_dim]")
    features = Features(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic
    )
    both = (cu_seqlens, cu_seqlens), (max_seqlen, max_seqlen)
    return _varlen(q, k, v, *both, features, return_attn_probs)


def _dense(q: Tensor, k: Tensor, v: Tensor, features: Features, return_attn_probs: bool) -> Result:
    if return_attn_probs:
        return dense_forward(q, k, v, features, with_pattern=True)[:3]
    return attend(q, k, v, features)


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: tuple[Tensor, Tensor],
    max_seqlens: tuple[int, int],
    features: Features,
    return_attn_probs: bool,
) -> Result:
    if return_attn_probs:
        return packed_forward(q, k, v, cu_seqlens, max_seqlens, features, with_pattern=True)[:3]
    return attend_varlen(q, k, v, cu_seqlens, max_seqlens, features)
