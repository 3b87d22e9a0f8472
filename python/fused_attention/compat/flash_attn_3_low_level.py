"""The functions below flash-attn 3's public ones, which ring and context parallelism call.

Those with an underscore record no gradients. The backward takes out and lse as arguments, which may
be merged over more keys than these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fused_attention.checks import wrong_value
from fused_attention.compat.attend import Features, no_fp8, packed_forward
from fused_attention.compat.conventions import as_int, heads_first, packed, wrong_shape
from fused_attention.compat.flash_attn_2_low_level import (
    explicit_backward,
    row_sums,
    write_gradients,
)
from fused_attention.compat.flash_attn_3_cache import flash_attn_with_kvcache
from fused_attention.compat.spans import Spans, attend_spans, spans_of_packed, split_chunks

Pair = tuple[Tensor, Tensor]
Used = tuple[Tensor | None, Tensor | None]


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Pair,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    used: Used,
    qv: Tensor | None,
    features: Features,
    attention_chunk: int,
) -> Pair:
    """out and lse of packed sequences, of which only the first tokens may count.

    Args:
        used: seqused_q and seqused_k.

    The others are those of flash_attn_varlen_func.
    """
    q, k = with_qv(q, k, v, qv)
    lengths = max_seqlen_q, max_seqlen_k
    if used[0] is None and used[1] is None and not attention_chunk:
        return packed_forward(q, k, v, cu_seqlens, lengths, features, with_pattern=False)[:2]
    q_ends = spans_of_packed(cu_seqlens[0], used[0])
    spans = Spans(*q_ends, *spans_of_packed(cu_seqlens[1], used[1]))
    if attention_chunk:
        spans = split_chunks(spans, attention_chunk)
    longest = as_int(max_seqlen_q)
    return attend_spans(q, k, v, spans, max_seqlen_q=longest, **features.options())


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_new: Tensor | None = None,
    v_new: Tensor | None = None,
    qv: Tensor | None = None,
    out_: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    page_table: Tensor | None = None,
    kv_batch_idx: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    seqlens_rotary: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense, packed (cu_seqlens_k given) and cached attention behind one signature.

    Args:
        out_: where to write out; default a new tensor.
        seqused_q: only with cu_seqlens_k.
        seqused_k: with cu_seqlens_k how many keys of each sequence count, else how many are cached.

    The others are those of flash_attn_varlen_func and of flash_attn_with_kvcache, whose cache is k
    and v.

    Returns:
        (out, lse, and two empty tensors where the original has its partial results).
    """
    no_fp8(q_descale, k_descale, v_descale)
    window = window_size_left, window_size_right
    if seqused_q is not None and cu_seqlens_k is None:
        wrong_value("seqused_q", "needs cu_seqlens_k (packed queries and keys)", "none")
    with torch.no_grad():
        if cu_seqlens_k is None:
            found = flash_attn_with_kvcache(
                q,
                k,
                v,
                k_new,
                v_new,
                qv,
                rotary_cos,
                rotary_sin,
                seqused_k,
                kv_batch_idx,
                leftpad_k,
                page_table,
                cu_seqlens_q,
                cu_seqlens_k_new,
                max_seqlen_q,
                seqlens_rotary,
                softmax_scale=softmax_scale,
                causal=causal,
                window_size=window,
                attention_chunk=attention_chunk,
                softcap=softcap,
                rotary_interleaved=rotary_interleaved,
                return_softmax_lse=True,
            )
            out, lse = found[0], found[1]
        else:
            if cu_seqlens_q is None:
                wrong_value("cu_seqlens_q", "must be given with cu_seqlens_k", None)
            features = Features(0.0, softmax_scale, causal, window, softcap)
            lengths = (cu_seqlens_q, cu_seqlens_k), max_seqlen_q, max_seqlen_k
            used = seqused_q, seqused_k
            out, lse = packed_attention(q, k, v, *lengths, used, qv, features, attention_chunk)
    if out_ is not None:
        out = out_.copy_(out)
    return out, lse, out.new_empty(0), lse.new_empty(0)


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    sequed_q: Tensor | None = None,
    sequed_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    softmax_scale: float | None = None,
    is_causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> Tensor:
    """Gradients of dense or packed attention, written into dq, dk and dv.

    Args:
        dout: gradient of out.
        out, softmax_lse: the forward's, or a merge of several.
        sequed_q, sequed_k: the forward's seqused_q and seqused_k.

    Returns:
        The row sums of dout * out, [batch, heads, seqlen_q] or [heads, total_q], in fp32 (fp64 for
        fp64).
    """
    window = window_size_left, window_size_right
    features = Features(0.0, softmax_scale, is_causal, window, softcap, None, deterministic)
    names = {"dout": dout, "q": q, "k": k, "v": v, "out": out}
    if cu_seqlens_q is None or cu_seqlens_k is None:
        operands = [heads_first(name, tensor) for name, tensor in names.items()]
        found = explicit_backward(operands, softmax_lse, features, None)
        write_gradients(found, (dq, dk, dv), transposed=True)
        return row_sums(dout, out).transpose(1, 2)
    q_ends = spans_of_packed(cu_seqlens_q, sequed_q)
    apart = Spans(*q_ends, *spans_of_packed(cu_seqlens_k, sequed_k)).cu_seqlens()
    operands = [packed(name, tensor) for name, tensor in names.items()]
    found = explicit_backward(
        operands,
        softmax_lse,
        features,
        None,
        cu_seqlens_q=apart[0],
        cu_seqlens_k=apart[1],
        max_seqlen_q=as_int(max_seqlen_q),
    )
    write_gradients(found, (dq, dk, dv), transposed=False)
    return row_sums(dout, out).transpose(0, 1)


def with_qv(q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None) -> tuple[Tensor, Tensor]:
    """q k^T + qv v^T is one product of longer heads."""
    if qv is None:
        return q, k
    if qv.shape != (*q.shape[:-1], v.shape[-1]):
        wrong_shape("qv", f"{[*q.shape[:-1], v.shape[-1]]}", qv)
    return torch.cat([q, qv], dim=-1), torch.cat([k, v], dim=-1)
