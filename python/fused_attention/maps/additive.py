"""additive_attention_maps: what the weights of additive_attention look like."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_attention import checks
from fused_attention.additive.call import AdditiveCall, check_values
from fused_attention.additive.door import prepare
from fused_attention.additive.reference import additive_scores
from fused_attention.autocast import without_autocast
from fused_attention.maps.blocks import Asked, keys_from, maps_in_blocks
from fused_attention.maps.problem import check_lse, detached
from fused_attention.maps.results import AttentionMaps
from fused_attention.masks import UNBOUNDED, Band, band_kv_range


def additive_attention_maps(
    query_proj: Tensor,
    key_proj: Tensor,
    v: Tensor,
    lse: Tensor,
    *,
    rows: Sequence[int] | Tensor | None = None,
    heads: Sequence[int] | Tensor | None = None,
    column_mass: bool = False,
    column_mean: bool = False,
    entropy: bool = False,
    argmax: bool = False,
    top_k: int = 0,
    bias: Tensor | None = None,
    g: float | Tensor | None = None,
    key_lengths: Tensor | None = None,
    band: Band | None = None,
) -> AttentionMaps:
    """What the weights of an additive attention look like, without all of them in memory.

    `additive_attention(query_proj, key_proj, value, v, return_lse=True, ...)` leaves lse; with it
    the weights are exp(v . tanh(q_i + k_j + bias) - lse_i). Nothing here has gradients.

    It has no kernel of its own: plain torch operations take one block of queries after the other,
    on any device. Memory is O(Lq + Lk) beside what is asked for: the [B, H, queries, Lk, D] of a
    block stays below 8 MiB, or is that of one query, as large as key_proj in fp32; three of that
    size are alive at once. Keys that the band hides from a whole block are not read.

    Args:
        query_proj: [B, Lq, D] or [B, H, Lq, D] as it was given to additive_attention.
        key_proj: [B, (H,) Lk, D].
        v: [D], with heads also [H, D].
        lse: [B, (H,) Lq] in fp32 (fp64 for fp64); it may be a merge over more keys than these.
        rows: queries whose weights are wanted, in any order.
        heads: the heads that are looked at; default all. Only where query_proj has heads.
        column_mass: whether to sum up what each key receives.
        column_mean: whether to average it over the queries that can see the key.
        entropy: whether to compute that of each query's weights.
        argmax: whether to find each query's key of highest weight.
        top_k: how many of each query's highest weights are wanted; of equal ones the lower key.
        bias, g, key_lengths, band: as they were given to additive_attention.

    Returns:
        AttentionMaps, whose fields say shapes; without heads in query_proj they have no H. What was
        not asked for is None.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong device, shape, layout or value, or nothing was asked
            for.
    """
    query_proj, key_proj, v, lse, bias, g = detached(query_proj, key_proj, v, lse, bias, g)
    operands = (query_proj, key_proj, key_proj, v)
    _, call = prepare(*operands, bias=bias, g=g, key_lengths=key_lengths, band=band)
    flat = query_proj.dim() == 3
    check_lse(lse, call.query.squeeze(1) if flat else call.query, packed=False)
    if flat and heads is not None:
        checks.wrong_value("heads", "must be None where query_proj has no heads", heads)
    flags = (column_mass, column_mean, entropy, argmax)
    asked = Asked.of(call.query, rows, heads, flags, top_k)
    check_values(call)
    lse = asked.of_heads(lse.unsqueeze(1) if flat else lse)
    with without_autocast(lse.device.type):
        found = _maps(call, lse, asked)
    if not flat:
        return found
    return AttentionMaps(*(None if x is None else x.squeeze(1) for x in found))


def _maps(call: AdditiveCall, lse: Tensor, asked: Asked) -> AttentionMaps:
    call = call._replace(
        query=asked.of_heads(call.query),
        key=asked.of_heads(call.key),
        v=asked.of_heads(call.v[None])[0],
    )
    batch, heads, len_k, dim = call.key.shape

    def scores(begin: int, end: int) -> tuple[Tensor, int]:
        first, last = band_kv_range(call.band, begin, end, len_k)
        # Where they see a key, it is at most `left` behind their diagonal, within what Band takes.
        offset = min(call.offset + begin - first, UNBOUNDED)
        block = call._replace(
            query=call.query[:, :, begin:end],
            key=call.key[:, :, first:last],
            key_lengths=keys_from(first, call.key_lengths),
            offset=offset,
        )
        return additive_scores(block)[0], first

    # In these bytes of each key: the tanh of every dimension, or an index of the sort.
    wide = max(dim * torch.finfo(lse.dtype).bits // 8, 8)
    return maps_in_blocks(scores, lse, len_k, asked, batch * heads * len_k * wide)
