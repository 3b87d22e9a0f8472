"""local_attention_maps: what the weights of local_attention look like."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fused_attention.autocast import without_autocast
from fused_attention.local.call import LocalCall
from fused_attention.local.door import Mode, prepare
from fused_attention.local.problem import check_local_values
from fused_attention.local.reference import weight_scores
from fused_attention.maps.blocks import Asked, keys_from, maps_in_blocks
from fused_attention.maps.problem import check_lse, detached
from fused_attention.maps.results import AttentionMaps


def local_attention_maps(
    query: Tensor,
    key: Tensor,
    position: Tensor,
    lse: Tensor,
    *,
    width: float,
    rows: Sequence[int] | Tensor | None = None,
    heads: Sequence[int] | Tensor | None = None,
    column_mass: bool = False,
    column_mean: bool = False,
    entropy: bool = False,
    argmax: bool = False,
    top_k: int = 0,
    sigma: float | Tensor | None = None,
    key_lengths: Tensor | None = None,
    mode: Mode = "luong",
    scale: float | None = None,
) -> AttentionMaps:
    """What the weights of a local attention look like, without the [Lq, Lk] matrix in memory.

    `local_attention(query, key, value, position, return_lse=True, ...)` leaves lse. Weights are
    those that it applies to values: with mode "luong" the Gaussian is in them and they sum to less
    than 1. Facts are of these numbers as they are; the entropy is -sum W ln W, not renormalised.
    With sigma=inf it is that of the softmax over the window. Nothing here has gradients.

    It has no kernel of its own: plain torch operations take one block of queries after the other,
    on any device. Memory is O(Lq + Lk) beside what is asked for: a tensor [B, H, queries, Lk] of
    a block stays below 8 MiB, or is that of one query; about ten of them are alive at once. On CPUs
    keys outside of every window of a block are not read.

    Args:
        query: [B, Hq, Lq, D] as it was given to local_attention.
        key: [B, Hkv, Lk, D].
        position: [B, Hq or 1, Lq].
        lse: [B, Hq, Lq] in fp32 (fp64 for fp64); it may be a merge over more keys than these.
        width: the half width of the window.
        rows: queries whose weights are wanted, in any order.
        heads: the query heads that are looked at; default all.
        column_mass: whether to sum up what each key receives.
        column_mean: whether to average it over the queries whose window has the key.
        entropy: whether to compute that of each query's weights.
        argmax: whether to find each query's key of highest weight.
        top_k: how many of each query's highest weights are wanted; of equal ones the lower key.
        sigma, key_lengths, mode, scale: as they were given to local_attention.

    Returns:
        AttentionMaps, whose fields say shapes; what was not asked for is None.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong device, shape, layout or value, or nothing was asked
            for.
    """
    query, key, position, lse, sigma = detached(query, key, position, lse, sigma)
    terms = (width, sigma, key_lengths, mode, scale)
    _, call = prepare(query, key, key, position, *terms)
    check_lse(lse, call.query, packed=False)
    flags = (column_mass, column_mean, entropy, argmax)
    asked = Asked.of(call.query, rows, heads, flags, top_k)
    check_local_values(call)
    with without_autocast(lse.device.type):
        return _maps(call, asked.of_heads(lse), asked)


def _maps(call: LocalCall, lse: Tensor, asked: Asked) -> AttentionMaps:
    group = call.query.shape[1] // call.key.shape[1]
    key = asked.of_heads(call.key, group)
    call = call._replace(
        query=asked.of_heads(call.query),
        key=key,
        value=key,
        position=asked.of_heads(call.position),
        sigma=None if call.sigma is None else asked.of_heads(call.sigma),
    )
    len_k = key.shape[2]

    def scores(begin: int, end: int) -> tuple[Tensor, int]:
        queries = slice(begin, end)
        position = call.position[:, :, queries]
        first, last = _reach(position, call.width, len_k)
        keys = call.key[:, :, first:last]
        block = call._replace(
            query=call.query[:, :, queries],
            key=keys,
            value=keys,
            position=position - first,  # exact: it is none, or no window begins before it
            sigma=None if call.sigma is None else call.sigma[:, :, queries],
            key_lengths=keys_from(first, call.key_lengths),
        )
        return weight_scores(block), first

    indices = 8  # bytes of what a window and a sort say of a key
    return maps_in_blocks(scores, lse, len_k, asked, math.prod(lse.shape[:2]) * len_k * indices)


def _reach(position: Tensor, width: float, len_k: int) -> tuple[int, int]:
    """Keys [first, last) outside of which no window has any; off CPUs looking would stall."""
    if position.device.type != "cpu" or math.isinf(width) or position.numel() == 0:
        return 0, len_k
    low, high = (math.floor(end) for end in torch.aminmax(position))
    first, last = max(low - math.floor(width), 0), min(high + math.floor(width) + 1, len_k)
    return (first, last) if first < last else (0, 0)
