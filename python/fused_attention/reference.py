"""Attention and its gradient as references: slow, differentiable, for dense and packed batches.

The formulas themselves stand in `formulas.py`. Here they get their dtypes, and a packed batch
becomes one dense problem per sequence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention.formulas import (
    AttentionGradients,
    AttentionTerms,
    dense_backward,
    dense_forward,
    statistics_dtype,
)
from fused_attention.philox import dropout_keep_mask, dropout_threshold, philox4x32

__all__ = [
    "AttentionGradients",
    "AttentionTerms",
    "attention_backward_reference",
    "attention_reference",
    "dropout_keep_mask",
    "dropout_threshold",
    "philox4x32",
]


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    **terms: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * Q K^T) V and the log-sum-exp of its rows.

    A row that sees no key has out 0 and lse -inf (with a sink: the sink). Keys and values beyond
    a length may hold NaN.

    Args:
        query: [B, Hq, Lq, D]; packed (cu_seqlens_q given): [Tq, Hq, D].
        key: [B, Hkv, Lk, D]; packed: [Tk, Hkv, D]. Hkv divides Hq.
        value: [B, Hkv, Lk, Dv]; packed: [Tk, Hkv, Dv].
        cu_seqlens_q: integer [B + 1], where the packed query sequences begin and end.
        cu_seqlens_k: the same for key and value; default cu_seqlens_q.
        compute_dtype: of every step and of the output. Default: fp32 for fp16 and bf16, else the
            query's dtype, with the output in the query's dtype.
        terms: the fields of `AttentionTerms`.

    Returns:
        out [B, Hq, Lq, Dv], packed [Tq, Hq, Dv] with zeros beyond the last sequence, and
        lse [B, Hq, Lq], packed [Hq, Tq] with -inf there; fp64 if computed in fp64, else fp32.

    Raises:
        TypeError: a keyword that is no field of `AttentionTerms`.
        ValueError: bias or kv_lengths with a packed batch, or dropout without rng_state.
    """
    compute = compute_dtype or _default_compute_dtype(query)
    operands = query.to(compute), key.to(compute), value.to(compute)
    own = AttentionTerms(**terms)
    if cu_seqlens_q is None:
        out, lse = dense_forward(*operands, own)
    else:
        out, lse = _packed_forward(*operands, _sequences(own, cu_seqlens_q, cu_seqlens_k))
    return out.to(compute_dtype or query.dtype), lse


def attention_backward_reference(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    **terms: Any,
) -> AttentionGradients:
    """The gradient formula of the flash kernels, from the saved out and lse.

        P  = exp(S - lse)        delta = rowsum(grad_out * out) - grad_lse
        dP = grad_out V^T        dS    = P * (dP - delta), which is the gradient of the bias too
        dV = P^T grad_out        dsink = -sum exp(sink - lse) * delta
        dQ = scale * dS K        dK    = scale * dS^T Q

    out and lse count as inputs of their own: they may come from a merge over more keys than these.
    Every operation is differentiable, so autograd through this function is the exact double
    backward. A row with lse -inf contributes zero whatever its grad_out and grad_lse hold.

    Args:
        grad_out: gradient of out, in its shape.
        grad_lse: gradient of lse, in its shape; None is zero.
        query, key, value, cu_seqlens_q, cu_seqlens_k, terms: as in `attention_reference`.
        out, lse: what `attention_reference` returned, or a merge of such results.
        compute_dtype: of every step and of the gradients. Default: fp32 for fp16 and bf16, else
            the query's dtype, with each gradient in its input's dtype.
    """
    compute = compute_dtype or _default_compute_dtype(query)
    operands = grad_out.to(compute), query.to(compute), key.to(compute), value.to(compute)
    results = out.to(compute), lse, grad_lse
    own = AttentionTerms(**terms)
    if cu_seqlens_q is None:
        gradients = dense_backward(*operands, *results, own)
    else:
        sequences = _sequences(own, cu_seqlens_q, cu_seqlens_k)
        gradients = _packed_backward(*operands, *results, own.sinks, sequences)

    def as_input(gradient: Tensor, tensor: Tensor | None) -> Tensor:
        dtype = gradient.dtype if tensor is None else tensor.dtype
        return gradient.to(compute_dtype or dtype)

    return AttentionGradients(
        as_input(gradients.query, query),
        as_input(gradients.key, key),
        as_input(gradients.value, value),
        None if gradients.bias is None else as_input(gradients.bias, own.bias),
        None if gradients.sinks is None else as_input(gradients.sinks, own.sinks),
    )


def _default_compute_dtype(query: Tensor) -> torch.dtype:
    return torch.float32 if query.dtype in (torch.float16, torch.bfloat16) else query.dtype


class _Sequence(NamedTuple):
    """One sequence of a packed batch."""

    q_rows: slice
    k_rows: slice
    terms: AttentionTerms


def _sequences(
    terms: AttentionTerms, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor | None
) -> list[_Sequence]:
    for name in ("bias", "kv_lengths"):
        if getattr(terms, name) is not None:
            raise ValueError(f"{name}: must be None with a packed batch, got a tensor")
    q_ends = cu_seqlens_q.tolist()
    k_ends = q_ends if cu_seqlens_k is None else cu_seqlens_k.tolist()
    return [
        _Sequence(
            slice(q_ends[b], q_ends[b + 1]), slice(k_ends[b], k_ends[b + 1]), _own_terms(terms, b)
        )
        for b in range(len(q_ends) - 1)
    ]


def _own_terms(terms: AttentionTerms, b: int) -> AttentionTerms:
    """The terms of sequence b as those of a dense batch of one."""
    slopes, offsets = terms.alibi_slopes, terms.band_offsets
    return replace(
        terms,
        alibi_slopes=slopes[b] if slopes is not None and slopes.dim() == 2 else slopes,
        band_offsets=None if offsets is None else offsets[b : b + 1],
        first_batch=terms.first_batch + b,
    )


def _packed_forward(
    query: Tensor, key: Tensor, value: Tensor, sequences: list[_Sequence]
) -> tuple[Tensor, Tensor]:
    results = [
        dense_forward(_unpack(query, q), _unpack(key, k), _unpack(value, k), terms)
        for q, k, terms in sequences
    ]
    nothing = _nothing(query, key, value)
    blank = query.new_zeros(*query.shape[:2], value.shape[2]) + nothing
    out = _pack([out for out, _ in results], blank)
    blank = query.new_full((*query.shape[:2], 1), -torch.inf, dtype=statistics_dtype(query))
    lse = _pack([lse.unsqueeze(-1) for _, lse in results], blank + nothing)
    return out, lse.squeeze(-1).mT.contiguous()


def _packed_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_lse: Tensor | None,
    sinks: Tensor | None,
    sequences: list[_Sequence],
) -> AttentionGradients:
    results = []
    for q, k, terms in sequences:
        operands = _unpack(grad_out, q), _unpack(query, q), _unpack(key, k), _unpack(value, k)
        own_grad_lse = None if grad_lse is None else grad_lse[None, :, q]
        statistics = lse[None, :, q], own_grad_lse
        results.append(dense_backward(*operands, _unpack(out, q), *statistics, terms))
    d_sinks = None if sinks is None else torch.zeros_like(sinks)
    for result in results:
        if d_sinks is not None and result.sinks is not None:
            d_sinks = d_sinks + result.sinks
    nothing = _nothing(grad_out, query, key, value, out)
    return AttentionGradients(
        query=_pack([result.query for result in results], torch.zeros_like(query) + nothing),
        key=_pack([result.key for result in results], torch.zeros_like(key) + nothing),
        value=_pack([result.value for result in results], torch.zeros_like(value) + nothing),
        bias=None,
        sinks=d_sinks,
    )


def _unpack(tensor: Tensor, rows: slice) -> Tensor:
    """A sequence of [T, H, D] as a dense batch of one, [1, H, L, D]."""
    return tensor[rows].transpose(0, 1).unsqueeze(0)


def _pack(sequences: list[Tensor], blank: Tensor) -> Tensor:
    """[1, H, L, D] each, one after the other, as [T, H, D]; the rows left over are blank's."""
    rows = [tensor.squeeze(0).transpose(0, 1) for tensor in sequences]
    return torch.cat([*rows, blank[sum(len(r) for r in rows) :]])


def _nothing(*tensors: Tensor) -> Tensor:
    """A zero that depends on all tensors: a batch without sequences stays differentiable."""
    return torch.stack([tensor[:0].sum() for tensor in tensors]).sum()
