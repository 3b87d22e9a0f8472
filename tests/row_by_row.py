"""Attention once more, independent of the package: one query and its visible keys at a time."""

from __future__ import annotations

from itertools import product

import torch
from attention_inputs import AttentionInputs
from torch import Tensor

from fused_attention.philox import dropout_keep_mask


def attention_row_by_row(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """out and lse of fp64 inputs, dense or packed."""
    packed = inputs.cu_seqlens_q is not None

    def heads_first(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1) if packed else tensor

    out = inputs.query.new_zeros(*inputs.query.shape[:-1], inputs.value.shape[-1])
    lse = out.new_full(out.shape[:-1], -torch.inf)
    for b, (q_rows, k_rows) in enumerate(_batch(inputs)):
        query, own_out, own_lse = (heads_first(x[q_rows]) for x in (inputs.query, out, lse))
        key, value = heads_first(inputs.key[k_rows]), heads_first(inputs.value[k_rows])
        (heads, len_q, _), len_k = query.shape, key.shape[1]
        keep = None
        if inputs.case.dropout_p:
            state = torch.tensor([inputs.dropout_seed, inputs.dropout_offset])
            keep = dropout_keep_mask(state, inputs.case.dropout_p, b + 1, heads, len_q, len_k)[b]
        for h, i in product(range(heads), range(len_q)):
            own_out[h, i], own_lse[h, i] = _row(inputs, b, h, i, query, key, value, keep)
    return out, lse.mT if packed else lse


def _batch(inputs: AttentionInputs) -> list[tuple[int | slice, int | slice]]:
    """Where the queries and the keys of each batch row or sequence are."""
    if inputs.cu_seqlens_q is None or inputs.cu_seqlens_k is None:
        return [(b, b) for b in range(inputs.query.shape[0])]
    q_ends, k_ends = inputs.cu_seqlens_q.tolist(), inputs.cu_seqlens_k.tolist()
    count = len(q_ends) - 1
    return [(slice(*q_ends[b : b + 2]), slice(*k_ends[b : b + 2])) for b in range(count)]


def _row(
    inputs: AttentionInputs,
    b: int,
    h: int,
    i: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """out [Dv] and lse of query i of head h; query [Hq, Lq, D], key, value [Hkv, Lk, D]."""
    case, (heads, len_q, dim), (heads_kv, len_k, _) = inputs.case, query.shape, key.shape
    offset = len_k - len_q if case.band.offset is None else case.band.offset
    offset = offset if case.band_offsets is None else case.band_offsets[b]
    length = len_k if case.kv_lengths is None else case.kv_lengths[b]
    first, last = i + offset - case.band.left, i + offset + case.band.right
    j = torch.arange(len_k)[max(0, first) : max(0, min(last + 1, length))]

    head_kv = h * heads_kv // heads
    S = (key[head_kv, j] * query[h, i]).sum(dim=-1)
    S = S * (dim**-0.5 if case.scale is None else case.scale)
    if case.softcap:
        S = case.softcap * torch.tanh(S / case.softcap)
    if inputs.bias is not None:
        at = zip(inputs.bias.shape, (b, h, i), strict=False)
        row = inputs.bias[tuple(0 if size == 1 else index for size, index in at)]
        S = S + (row if len(row) == 1 else row[j])
    if inputs.alibi_slopes is not None:
        slopes = inputs.alibi_slopes[b] if case.alibi == "bh" else inputs.alibi_slopes
        S = S - slopes[h].double() * (i + offset - j).abs()
    scores = S if inputs.sinks is None else torch.cat([S, inputs.sinks[h : h + 1]])
    if not scores.gt(-torch.inf).any():
        return value.new_zeros(value.shape[-1]), value.new_tensor(-torch.inf)

    lse = scores.logsumexp(dim=0)
    P = (S - lse).exp()
    if keep is not None:
        P = P * keep[h, i, j] / (1 - round(case.dropout_p * 65536) / 65536)
    return (P[:, None] * value[head_kv, j]).sum(dim=0), lse
