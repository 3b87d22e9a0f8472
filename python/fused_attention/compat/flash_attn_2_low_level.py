"""The functions below flash_attn's public ones, which ring and context parallelism call.

They record no gradients. The backward functions take out and lse as arguments, which may be merged
over more keys than these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_attention.autograd import backward_op
from fused_attention.checks import wrong_value
from fused_attention.compat.attend import Features, Forward, dense_forward, packed_forward
from fused_attention.compat.conventions import as_int, heads_first, packed
from fused_attention.compat.dropout_pattern import packed_pattern
from fused_attention.compat.kv_cache import (
    Cache,
    cached_rows,
    check_cache,
    longest,
    read_lengths,
)
from fused_attention.compat.spans import PIECES, Spans, spans_of_packed, spans_of_rows
from fused_attention.dispatch import select
from fused_attention.prepare import prepare
from fused_attention.signature import join_backward

USE_TRITON_ROCM = False  # code that serves AMD's own build asks for it

Pair = tuple[Tensor, Tensor]


def _get_block_size_n(
    device: torch.device | str, head_dim: int, is_dropout: bool, is_causal: bool
) -> int:
    """Over how many keys the maximum in S_dmask runs: all."""
    return 1 << 30


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> Forward:
    """`flash_attn_func` without gradients.

    Returns:
        (out, lse, S_dmask, rng_state); rng_state is int64 [2], what the backward needs to drop the
        same.
    """
    window = window_size_left, window_size_right
    features = Features(dropout_p, softmax_scale, causal, window, softcap, alibi_slopes)
    with torch.no_grad():
        return dense_forward(q, k, v, features, return_softmax)


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
    num_splits: int = 0,
) -> Forward:
    """`flash_attn_varlen_func` without gradients.

    Args:
        leftpad_k: integer [batch], where in its keys each sequence begins.
        seqused_k: integer [batch], keys of each sequence that count, the left padding among them.
        zero_tensors, num_splits: accepted; nothing here is left unwritten, and the backends split
            as they see fit.

    Returns:
        As `_flash_attn_forward`.
    """
    window = window_size_left, window_size_right
    features = Features(dropout_p, softmax_scale, causal, window, softcap, alibi_slopes)
    lengths = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    with torch.no_grad():
        if block_table is None and leftpad_k is None and seqused_k is None:
            return packed_forward(q, k, v, *lengths, features, return_softmax)
        return attend_apart(
            q, k, v, *lengths, features, return_softmax, block_table, leftpad_k, seqused_k
        )


def attend_apart(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Pair,
    max_seqlens: tuple[Any, Any],
    features: Features,
    with_pattern: bool,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> Forward:
    """`packed_forward` where keys are paged or some of them do not count."""
    q_ends = spans_of_packed(cu_seqlens[0])
    if block_table is None:
        k_ends = spans_of_packed(cu_seqlens[1], seqused_k, leftpad_k)
    else:
        lengths = cu_seqlens[1].diff() if seqused_k is None else seqused_k
        cache = Cache(k, v, lengths, None, leftpad_k, block_table)
        batch = len(lengths)
        check_cache(cache, batch)
        most = longest(cache, read_lengths(cache, lengths))
        k, v = cached_rows(cache, lengths, most, batch, cut=False)
        begin, _ = spans_of_rows(batch, k.shape[1], k.device)
        k_ends = (begin if leftpad_k is None else begin + leftpad_k), begin + lengths
        k, v = k.flatten(0, 1), v.flatten(0, 1)
    apart = Spans(*q_ends, *k_ends).cu_seqlens()
    slopes = features.alibi_slopes
    if slopes is not None and slopes.dim() == 2:
        features = features._replace(alibi_slopes=slopes.repeat_interleave(PIECES, dim=0))
    max_q, max_k = map(as_int, max_seqlens)
    found = packed_forward(q, k, v, apart, (max_q, None), features, with_pattern=False)
    if with_pattern and features.dropout_p > 0:
        options = features.options()
        pattern = packed_pattern(q, k, apart, (max_q, max_k), options, found.rng_state)
        found = found._replace(pattern=pattern[PIECES - 1 :: PIECES])
    return found


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Gradients of `_flash_attn_forward`, written into dq, dk and dv.

    Args:
        dout: gradient of out.
        out, softmax_lse: the forward's, or a merge of several.
        rng_state: the forward's; needed with dropout.

    Returns:
        The row sums of dout * out, [batch, heads, seqlen_q] in fp32 (fp64 for fp64).
    """
    window = window_size_left, window_size_right
    features = Features(
        dropout_p, softmax_scale, causal, window, softcap, alibi_slopes, deterministic
    )
    names = dict(dout=dout, q=q, k=k, v=v, out=out)
    operands = [heads_first(name, tensor) for name, tensor in names.items()]
    found = explicit_backward(operands, softmax_lse, features, rng_state)
    write_gradients(found, (dq, dk, dv), transposed=True)
    return row_sums(dout, out).transpose(1, 2)


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> Tensor:
    """Gradients of `_flash_attn_varlen_forward`, written into dq, dk and dv.

    Returns:
        The row sums of dout * out, [heads, total_q] in fp32 (fp64 for fp64).
    """
    window = window_size_left, window_size_right
    features = Features(
        dropout_p, softmax_scale, causal, window, softcap, alibi_slopes, deterministic
    )
    names = dict(dout=dout, q=q, k=k, v=v, out=out)
    operands = [packed(name, tensor) for name, tensor in names.items()]
    found = explicit_backward(
        operands,
        softmax_lse,
        features,
        rng_state,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=as_int(max_seqlen_q),
        max_seqlen_k=as_int(max_seqlen_k),
    )
    write_gradients(found, (dq, dk, dv), transposed=False)
    return row_sums(dout, out).transpose(0, 1)


def explicit_backward(
    operands: list[Tensor],
    lse: Tensor,
    features: Features,
    rng_state: Tensor | None,
    **lengths: Any,
) -> tuple[Tensor, ...]:
    """dq, dk and dv where out and lse are given.

    Args:
        operands: dout, q, k, v and out in the layout of `attention`, with lengths in that of
            `attention_varlen`.
        lengths: cu_seqlens and max_seqlens of `attention_varlen`.
    """
    dout, query, key, value, out = operands
    if features.dropout_p > 0 and rng_state is None:
        wrong_value("rng_state", "must be the forward's where there is dropout", None)
    with torch.no_grad():
        problem, call = prepare(query, key, value, **lengths, **features.options())
        if features.dropout_p > 0:
            call = call._replace(rng_state=rng_state)
        backend = select(problem._replace(needs_grad=True)).NAME
        arguments = join_backward((dout, None), call, (out, lse), (backend, False))
        grads: tuple[Tensor, ...] = backward_op(*arguments)
    return grads[:3]


def write_gradients(
    grads: tuple[Tensor, ...], into: tuple[Tensor | None, ...], transposed: bool
) -> None:
    for grad, tensor in zip(grads, into, strict=True):
        if tensor is not None:
            tensor.copy_(grad.transpose(1, 2) if transposed else grad)


def row_sums(dout: Tensor, out: Tensor) -> Tensor:
    """The sums over head_dim of dout * out, in at least fp32."""
    dtype = torch.promote_types(out.dtype, torch.float32)
    return (dout.to(dtype) * out.to(dtype)).sum(dim=-1)
