"""Attention and its gradient on a dense batch, as formulas made of plain torch operations.

The ground truth of every kernel and every test. It materialises [B, H, Lq, Lk], so it is slow; it
runs on any device and in any floating dtype, and every step is differentiable.

Notation, as in the papers: S scores, P probabilities, lse = log sum exp(S) of a row, dX the
gradient of X.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.masks import Band
from fused_attention.philox import (
    dropout_keep_mask,
    dropout_keep_probability,
    dropout_threshold,
)


@dataclass(frozen=True)
class AttentionTerms:
    """What shapes an attention besides its query, key and value; the keywords of the references.

    They apply in this order: scale, softcap, bias, ALiBi, mask, softmax with the sinks in its
    denominator, dropout. B counts batch rows, or the sequences of a packed batch.
    """

    band: Band = field(default_factory=Band)
    """Which keys a query sees. offset None: Lk - Lq (packed: of each sequence)."""
    scale: float | None = None
    """Default 1 / sqrt(D)."""
    softcap: float = 0.0
    """Scores become softcap * tanh(scores / softcap); 0 is off."""
    bias: Tensor | None = None
    """Added to the scores, [B|1, Hq|1, Lq|1, Lk|1]; not with a packed batch."""
    alibi_slopes: Tensor | None = None
    """[Hq] or [B, Hq]; -slope * |i + offset - j| is added to the scores."""
    kv_lengths: Tensor | None = None
    """Integer [B], how many keys of a row exist; not with a packed batch."""
    band_offsets: Tensor | None = None
    """Integer [B], replaces the band's offset row by row."""
    sinks: Tensor | None = None
    """[Hq], one more score in each row, whose value is zero."""
    dropout_p: float = 0.0
    """Chance in [0, 1) that a probability is dropped, see `dropout_keep_mask`."""
    rng_state: Tensor | None = None
    """int64 [2], seed and offset of the dropout."""
    first_batch: int = 0
    """What dropout takes as b of the first row: a slice of a batch drops what the batch drops."""


class AttentionGradients(NamedTuple):
    """Gradients of one attention, in the shapes of its inputs; None where the input is None."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    sinks: Tensor | None


class AttentionTangents(NamedTuple):
    """Directions in which the inputs of one attention move, in their shapes; None is zero."""

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None


def dense_forward(
    query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms
) -> tuple[Tensor, Tensor]:
    """Attention of query [B, Hq, Lq, D], key [B, Hkv, Lk, D] and value [B, Hkv, Lk, Dv].

    All three share a dtype, in which every step is done. Returns out [B, Hq, Lq, Dv] in that dtype
    and lse [B, Hq, Lq] in at least fp32.
    """
    key, value = (without_padding(x, terms.kv_lengths) for x in (key, value))
    value = _share_heads(value, query)
    S, _ = _scores(query, key, terms)

    # One more column makes the softmax of any row finite: the sink, or for a row without key and
    # sink a zero that takes all of the probability.
    last = S.new_full((), -torch.inf) if terms.sinks is None else terms.sinks.to(S)[:, None, None]
    last = last.expand(*S.shape[:-1], 1)
    dead = torch.cat([S, last], dim=-1).amax(dim=-1, keepdim=True) == -torch.inf
    S = torch.cat([S, last.masked_fill(dead, 0.0)], dim=-1)

    lse = S.logsumexp(dim=-1).masked_fill(dead.squeeze(-1), -torch.inf)
    P = _dropped(S.softmax(dim=-1)[..., :-1], terms)
    out = (P @ value).masked_fill(dead, 0.0)
    return out, lse.to(statistics_dtype(lse))


def dense_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_lse: Tensor | None,
    terms: AttentionTerms,
) -> AttentionGradients:
    """The gradients of `dense_forward` from its out and lse; grad_lse None is zero.

    Shapes as there. Rows with lse -inf contribute zero, whatever their grad_out and grad_lse.
    """
    kv_heads = key.shape[1]
    key, value = (without_padding(x, terms.kv_lengths) for x in (key, value))
    S, cap_slope = _scores(query, key, terms)

    dead = (lse == -torch.inf).unsqueeze(-1)
    lse = lse.to(statistics_dtype(query)).unsqueeze(-1).masked_fill(dead, 0.0)
    grad_out = grad_out.masked_fill(dead, 0.0)
    delta = (grad_out.to(lse) * out.to(lse)).sum(dim=-1, keepdim=True)
    if grad_lse is not None:
        delta = delta - grad_lse.to(lse).unsqueeze(-1).masked_fill(dead, 0.0)

    P = (S - lse).exp().to(S)
    dP = _dropped(grad_out @ _share_heads(value, query).mT, terms)
    dS = (P * (dP - delta)).to(S)
    d_value = _dropped(P, terms).mT @ grad_out
    d_bias = None if terms.bias is None else dS.sum_to_size(terms.bias.shape)
    d_sinks = None
    if terms.sinks is not None:
        d_sinks = -((terms.sinks.to(lse)[:, None, None] - lse).exp() * delta).sum(dim=(0, 2, 3))
    d_raw = dS * cap_slope * _scale(query, terms)
    d_query = d_raw @ _share_heads(key, query)
    d_key = d_raw.mT @ query
    d_key, d_value = (_sum_heads(x, kv_heads) for x in (d_key, d_value))
    return AttentionGradients(d_query, d_key, d_value, d_bias, d_sinks)


def dense_jvp(
    query: Tensor, key: Tensor, value: Tensor, tangents: AttentionTangents, terms: AttentionTerms
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`dense_forward` and how out and lse change along the tangents: out, lse, tangents of both.

        dS = scale * (dQ K^T + Q dK^T) * slope of the softcap + dbias
        dlse = rowsum(P * dS) + P(sink) * dsink
        dO = (P * (dS - dlse)) V + P dV

    Shapes and dtypes as in `dense_forward`. A row with lse -inf has zero tangents.
    """
    out, lse = dense_forward(query, key, value, terms)
    key, value = (without_padding(x, terms.kv_lengths) for x in (key, value))
    S, cap_slope = _scores(query, key, terms)
    dead = (lse == -torch.inf).unsqueeze(-1)
    wide_lse = lse.unsqueeze(-1).masked_fill(dead, 0.0)
    P = (S - wide_lse).exp().to(S)

    dS = torch.zeros_like(S)
    if tangents.query is not None:
        dS = dS + tangents.query @ _share_heads(key, query).mT
    if tangents.key is not None:
        dS = dS + query @ _share_heads(without_padding(tangents.key, terms.kv_lengths), query).mT
    dS = dS * _scale(query, terms) * cap_slope
    if tangents.bias is not None:
        dS = dS + tangents.bias.to(S)
    # What is hidden has weight 0, whatever a tangent holds there.
    P_dS = (P * dS).masked_fill(S.isneginf(), 0.0)

    d_lse = P_dS.to(wide_lse).sum(dim=-1, keepdim=True)
    if tangents.sinks is not None and terms.sinks is not None:
        sinks, d_sinks = (x.to(wide_lse)[:, None, None] for x in (terms.sinks, tangents.sinks))
        d_lse = d_lse + ((sinks - wide_lse).exp() * d_sinks).masked_fill(dead, 0.0)
    d_weights = _dropped(P_dS - (P * d_lse).to(S), terms)
    d_out = d_weights @ _share_heads(value, query)
    if tangents.value is not None:
        d_value = without_padding(tangents.value, terms.kv_lengths)
        d_out = d_out + _dropped(P, terms) @ _share_heads(d_value, query)
    return out, lse, d_out.masked_fill(dead, 0.0), d_lse.squeeze(-1).masked_fill(dead[..., 0], 0.0)


def dense_scores(query: Tensor, key: Tensor, terms: AttentionTerms) -> Tensor:
    """The scores of `dense_forward`, [B, Hq, Lq, Lk], -inf where a key is hidden."""
    S, _ = _scores(query, without_padding(key, terms.kv_lengths), terms)
    return S


def statistics_dtype(tensor: Tensor) -> torch.dtype:
    """Row statistics (lse, delta) are never kept in less than fp32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _scores(query: Tensor, key: Tensor, terms: AttentionTerms) -> tuple[Tensor, Tensor | float]:
    """Masked scores [B, Hq, Lq, Lk], -inf where hidden, and the derivative of the softcap."""
    len_q, len_k = query.shape[2], key.shape[2]
    S = query @ _share_heads(key, query).mT * _scale(query, terms)
    cap_slope: Tensor | float = 1.0
    if terms.softcap:
        bounded = (S / terms.softcap).tanh()
        S, cap_slope = terms.softcap * bounded, 1.0 - bounded.square()
    if terms.bias is not None:
        S = S + terms.bias.to(S)
    if terms.alibi_slopes is not None:
        slopes = terms.alibi_slopes.to(statistics_dtype(S)).reshape(-1, query.shape[1], 1, 1)
        diagonal = terms.band.diagonal(len_q, len_k, query.device, terms.band_offsets)
        distance = (diagonal - torch.arange(len_k, device=query.device)).abs()
        S = S - (slopes * distance).to(S)
    visible = terms.band.mask(len_q, len_k, terms.kv_lengths, query.device, terms.band_offsets)
    return S.masked_fill(~visible, -torch.inf), cap_slope


def _scale(query: Tensor, terms: AttentionTerms) -> float:
    return query.shape[-1] ** -0.5 if terms.scale is None else terms.scale


def _dropped(P: Tensor, terms: AttentionTerms) -> Tensor:
    """P with dropout applied; linear, so it is also the backward of dropout."""
    if dropout_threshold(terms.dropout_p) == 0:
        return P
    if terms.rng_state is None:
        raise ValueError(f"rng_state: must be given with dropout_p {terms.dropout_p}, got None")
    batch, heads, len_q, len_k = P.shape
    keep = dropout_keep_mask(
        terms.rng_state, terms.dropout_p, batch, heads, len_q, len_k, P.device, terms.first_batch
    )
    return P.masked_fill(~keep, 0.0) / dropout_keep_probability(terms.dropout_p)


def without_padding(tensor: Tensor, lengths: Tensor | None) -> Tensor:
    """Keys or values [B, H, Lk, D] with zeros beyond lengths [B]: 0 * NaN would leak through P V.

    lengths None: the keys all exist.
    """
    if lengths is None:
        return tensor
    row = torch.arange(tensor.shape[2], device=tensor.device)
    exists = row < lengths.to(tensor.device)[:, None]
    return tensor.masked_fill(~exists[:, None, :, None], 0.0)


def _share_heads(tensor: Tensor, query: Tensor) -> Tensor:
    """[B, Hkv, Lk, D] as [B, Hq, Lk, D]: query head h reads kv head h // (Hq // Hkv)."""
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def _sum_heads(tensor: Tensor, kv_heads: int) -> Tensor:
    """The transpose of `_share_heads`."""
    batch, heads, len_k, dim = tensor.shape
    return tensor.reshape(batch, kv_heads, heads // kv_heads, len_k, dim).sum(dim=2)
