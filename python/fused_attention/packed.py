"""The formulas on a packed batch: one dense problem of one batch row per sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.formulas import (
    AttentionGradients,
    AttentionTangents,
    AttentionTerms,
    dense_backward,
    dense_forward,
    dense_jvp,
    dense_scores,
    statistics_dtype,
)


class Sequence(NamedTuple):
    """One sequence of a packed batch."""

    q_rows: slice
    k_rows: slice
    terms: AttentionTerms


def sequences_of(
    terms: AttentionTerms, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor | None
) -> list[Sequence]:
    """The sequences between the entries of cu_seqlens_q and cu_seqlens_k (None: the former).

    Raises:
        ValueError: bias or kv_lengths among the terms.
    """
    for name in ("bias", "kv_lengths"):
        if getattr(terms, name) is not None:
            raise ValueError(f"{name}: must be None with a packed batch, got a tensor")
    q_ends = cu_seqlens_q.tolist()
    k_ends = q_ends if cu_seqlens_k is None else cu_seqlens_k.tolist()
    return [
        Sequence(
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


def packed_forward(
    query: Tensor, key: Tensor, value: Tensor, sequences: list[Sequence]
) -> tuple[Tensor, Tensor]:
    """out [Tq, Hq, Dv] and lse [Hq, Tq]; zeros and -inf beyond the last sequence."""
    results = [
        dense_forward(_unpack(query, q), _unpack(key, k), _unpack(value, k), terms)
        for q, k, terms in sequences
    ]
    nothing = _nothing(query, key, value)
    return (
        _pack_out([out for out, _ in results], query, value, nothing),
        _pack_lse([lse for _, lse in results], query, nothing, -torch.inf),
    )


def packed_scores(query: Tensor, key: Tensor, sequences: list[Sequence]) -> Tensor:
    """Scores of all rows with all rows, [Hq, Tq, Tk]: -inf between sequences and behind them."""
    scores = query.new_full((query.shape[1], query.shape[0], key.shape[0]), -torch.inf)
    for q, k, terms in sequences:
        scores[:, q, k] = dense_scores(_unpack(query, q), _unpack(key, k), terms)[0]
    return scores


def packed_jvp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tangents: AttentionTangents,
    sequences: list[Sequence],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`packed_forward` and the tangents of both, zeros beyond the last sequence."""
    results = []
    for q, k, terms in sequences:
        d_query, d_key, d_value = (
            None if tensor is None else _unpack(tensor, rows)
            for tensor, rows in zip(tangents[:3], (q, k, k), strict=True)
        )
        own = AttentionTangents(d_query, d_key, d_value, None, tangents.sinks)
        operands = _unpack(query, q), _unpack(key, k), _unpack(value, k)
        results.append(dense_jvp(*operands, own, terms))
    nothing = _nothing(*(t for t in (query, key, value, *tangents) if t is not None))
    return (
        _pack_out([result[0] for result in results], query, value, nothing),
        _pack_lse([result[1] for result in results], query, nothing, -torch.inf),
        _pack_out([result[2] for result in results], query, value, nothing),
        _pack_lse([result[3] for result in results], query, nothing, 0.0),
    )


def packed_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_lse: Tensor | None,
    sinks: Tensor | None,
    sequences: list[Sequence],
) -> AttentionGradients:
    """The gradients of `packed_forward`, zeros beyond the last sequence."""
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


def _pack_out(sequences: list[Tensor], query: Tensor, value: Tensor, nothing: Tensor) -> Tensor:
    return _pack(sequences, query.new_zeros(*query.shape[:2], value.shape[2]) + nothing)


def _pack_lse(sequences: list[Tensor], query: Tensor, nothing: Tensor, behind: float) -> Tensor:
    blank = query.new_full((*query.shape[:2], 1), behind, dtype=statistics_dtype(query))
    rows = _pack([lse.unsqueeze(-1) for lse in sequences], blank + nothing)
    return rows.squeeze(-1).mT.contiguous()


def _nothing(*tensors: Tensor) -> Tensor:
    """A zero that depends on all tensors: a batch without sequences stays differentiable."""
    return torch.stack([tensor[:0].sum() for tensor in tensors]).sum()
