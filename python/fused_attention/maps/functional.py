"""attention_maps: fills in defaults, has everything checked, chooses a backend, calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention import checks
from fused_attention.backends.call import Call
from fused_attention.maps.call import MapsCall, Results
from fused_attention.maps.operator import BACKENDS, maps_op
from fused_attention.maps.problem import (
    MapsProblem,
    check_asked,
    check_lse,
    chosen_indices,
    detached,
)
from fused_attention.maps.results import AttentionMaps
from fused_attention.maps.visible import queries_that_see
from fused_attention.masks import Band
from fused_attention.prepare import prepare
from fused_attention.problem import Problem
from fused_attention.selection import choose

if TYPE_CHECKING:
    from fused_attention.options import Window


def attention_maps(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    rows: Sequence[int] | Tensor | None = None,
    heads: Sequence[int] | Tensor | None = None,
    column_mass: bool = False,
    column_mean: bool = False,
    entropy: bool = False,
    argmax: bool = False,
    top_k: int = 0,
    causal: bool = False,
    window: Window | None = None,
    band: Band | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    kv_lengths: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    band_offsets: Tensor | None = None,
    backend: str | None = None,
) -> AttentionMaps:
    """What the weights of an attention look like, without the [Lq, Lk] matrix in memory.

    `attention(query, key, value, return_lse=True, ...)` leaves lse; with it the weights are
    exp(scores - lse), which are computed tile by tile and summed up, ranked or, for chosen rows,
    stored. Weights are those before dropout. Nothing here has gradients: results are detached.

    lse may also be a merge over more keys than these. The weights, column_mass and entropy are
    then what these keys contribute: those of all parts add up to the whole.

    Args:
        query: [B, Hq, Lq, D] as it was given to attention; packed [Tq, Hq, D].
        key: [B, Hkv, Lk, D]; packed [Tk, Hkv, D].
        lse: [B, Hq, Lq] in fp32 (fp64 for fp64); packed [Hq, Tq].
        rows: queries whose weights are wanted, in any order; packed: rows of the tensor.
        heads: the query heads that are looked at; default all.
        column_mass: whether to sum up what each key receives.
        column_mean: whether to average it over the queries that can see the key.
        entropy: whether to compute that of each query's weights; with `sinks` a sink counts as one
            more outcome.
        argmax: whether to find each query's key of highest weight.
        top_k: how many of each query's highest weights are wanted; of equal ones the lower key.
        causal, window, band, scale, bias, alibi_slopes, softcap, kv_lengths, band_offsets: as they
            were given to attention.
        sinks: the same; the weights do not depend on them, as lse holds them.
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k: as given to attention_varlen.
        backend: "cpu", "triton" or "reference"; default the first that can.

    Returns:
        AttentionMaps, whose fields say shapes; what was not asked for is None.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong device, shape, layout or value, or nothing was asked
            for.
        NotImplementedError: the backend asked for cannot run this; the message says why.
    """
    problem, attention = prepare(
        *detached(query, key, key),
        causal=causal,
        window=window,
        band=band,
        scale=scale,
        bias=detached(bias)[0],
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        sinks=detached(sinks)[0],
        kv_lengths=kv_lengths,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        band_offsets=band_offsets,
    )
    check_lse(lse, attention.query, problem.packed)
    checks.check_unsigned("top_k", top_k, 30)
    call = _maps_call(attention, lse, rows, heads)._replace(
        column_mass=bool(column_mass or column_mean),
        entropy=bool(entropy),
        argmax=bool(argmax),
        top_k=top_k,
    )
    chosen = choose(_problem(problem, call), BACKENDS, backend)
    results = Results(*maps_op(*call, chosen.NAME))
    found = AttentionMaps(**dict(zip(Results._fields, call.wanted(results), strict=True)))
    if column_mean:
        mean = results.column_mass / queries_that_see(call).clamp(min=1)
        found = found._replace(column_mean=mean)
    if not column_mass:
        found = found._replace(column_mass=None)
    if entropy and attention.sinks is not None:
        found = found._replace(entropy=results.entropy + _sink_entropy(call, attention.sinks))
    return found


def _maps_call(
    attention: Call,
    lse: Tensor,
    rows: Sequence[int] | Tensor | None,
    heads: Sequence[int] | Tensor | None,
) -> MapsCall:
    """The call of that attention, which asks for the rows' weights alone."""
    query = attention.query
    total_rows = query.shape[0 if attention.packed else 2]
    return MapsCall(
        query,
        attention.key,
        lse.detach().contiguous(),
        attention.bias,
        attention.alibi_slopes,
        attention.kv_lengths,
        attention.cu_seqlens_q,
        attention.cu_seqlens_k,
        attention.band_offsets,
        chosen_indices("heads", heads, query.shape[1], query.device),
        chosen_indices("rows", rows, total_rows, query.device),
        attention.max_seqlen_q,
        attention.max_seqlen_k,
        attention.scale,
        attention.softcap,
        attention.left,
        attention.right,
        attention.offset,
    )


def _problem(attention: Problem, call: MapsCall) -> MapsProblem:
    check_asked(call.rows, call.column_mass, call.entropy, call.argmax, call.top_k)
    return MapsProblem(
        attention,
        attention.heads_q if call.heads is None else call.heads.shape[0],
        0 if call.rows is None else call.rows.shape[0],
        *(call.column_mass, call.entropy, call.argmax, call.top_k),
    )


def _sink_entropy(call: MapsCall, sinks: Tensor) -> Tensor:
    """-P ln P of the sinks, [B, heads, Lq], packed [heads, Tq]; 0 where their weight is 0."""
    lse, logits = call.lse, sinks[:, None]
    if call.heads is not None:
        lse, logits = lse.index_select(-2, call.heads), logits.index_select(0, call.heads)
    log_weight = logits - lse
    weight = log_weight.exp()
    return -(weight * log_weight).masked_fill(logits == -torch.inf, 0.0)
