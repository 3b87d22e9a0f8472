"""The formulas of attention_maps: plain torch operations that hold all scores in memory.

The ground truth of every kernel, on any device and in any floating dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fused_attention.autocast import without_autocast
from fused_attention.formulas import AttentionTerms, dense_scores, statistics_dtype
from fused_attention.maps.call import MapsCall, Results
from fused_attention.maps.results import AttentionMaps
from fused_attention.packed import packed_scores, sequences_of

if TYPE_CHECKING:
    from fused_attention.maps.problem import MapsProblem

NAME = "reference"
DEVICE_TYPES = ()  # any


def why_not(problem: MapsProblem) -> list[str]:
    """Nothing: it stands last in the order and takes what no fused backend does."""
    return []


def maps(call: MapsCall) -> Results:
    """The results of one call."""
    with without_autocast(call.query.device.type):
        found = maps_reference(
            *(call.query, call.key, call.lse),
            cu_seqlens_q=call.cu_seqlens_q,
            cu_seqlens_k=call.cu_seqlens_k,
            heads=call.heads,
            rows=call.rows,
            column_mass=call.column_mass,
            entropy=call.entropy,
            argmax=call.argmax,
            top_k=call.top_k,
            band=call.attention.band,
            scale=call.scale,
            softcap=call.softcap,
            bias=call.bias,
            alibi_slopes=call.alibi_slopes,
            kv_lengths=call.kv_lengths,
            band_offsets=call.band_offsets,
        )
    results = call.empty_results()
    for name, result in results._asdict().items():
        value = getattr(found, name)
        if value is not None:
            result.copy_(value)
    return results


def maps_reference(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    heads: Tensor | None = None,
    rows: Tensor | None = None,
    column_mass: bool = False,
    entropy: bool = False,
    argmax: bool = False,
    top_k: int = 0,
    compute_dtype: torch.dtype | None = None,
    **terms: Any,
) -> AttentionMaps:
    """What is asked for about P = exp(S - lse), see AttentionMaps; column_mean is left out.

    Keys are ranked by their scores, so weights that round to 0 still have an order, and of equal
    scores the lower key is the first. A row with lse -inf has weights 0 and no highest key.

    Args:
        query, key, cu_seqlens_q, cu_seqlens_k: as in `attention_reference`.
        lse: [B, Hq, Lq], packed [Hq, Tq].
        heads: integer, the chosen heads; None: all.
        rows: integer, the queries whose weights are wanted; None: none.
        column_mass, entropy, argmax: whether they are wanted.
        top_k: how many of the highest weights are wanted.
        compute_dtype: of the scores. Default: fp32 for fp16 and bf16, else the query's dtype.
        terms: the fields of `AttentionTerms`, but for sinks, which lse holds, and dropout.
    """
    compute = compute_dtype or statistics_dtype(query)
    query, key, own = query.to(compute), key.to(compute), AttentionTerms(**terms)
    if cu_seqlens_q is None:
        S = dense_scores(query, key, own)
    else:
        S = packed_scores(query, key, sequences_of(own, cu_seqlens_q, cu_seqlens_k))
    if heads is not None:
        S, lse = S.index_select(-3, heads), lse.index_select(-2, heads)
    return maps_of_scores(
        *(S, lse),
        rows=rows,
        column_mass=column_mass,
        entropy=entropy,
        argmax=argmax,
        top_k=top_k,
    )


def maps_of_scores(
    S: Tensor,
    lse: Tensor,
    *,
    rows: Tensor | None,
    column_mass: bool,
    entropy: bool,
    argmax: bool,
    top_k: int,
) -> AttentionMaps:
    """The same of scores [..., Lq, Lk], -inf where a key is hidden, and lse [..., Lq]."""
    dead = (lse == -torch.inf).unsqueeze(-1)
    S = S.to(statistics_dtype(S)).masked_fill(dead, -torch.inf)
    log_P = S - lse.to(S).unsqueeze(-1).masked_fill(dead, 0.0)
    P = log_P.exp()
    first, _ = _highest(S, P, 1) if argmax else (None, None)
    top_indices, top_weights = _highest(S, P, top_k) if top_k else (None, None)
    return AttentionMaps(
        weights=None if rows is None else P.index_select(-2, rows),
        column_mass=P.sum(dim=-2) if column_mass else None,
        entropy=-(P * log_P.masked_fill(P == 0.0, 0.0)).sum(dim=-1) if entropy else None,
        argmax=None if first is None else first.squeeze(-1),
        top_weights=top_weights,
        top_indices=top_indices,
    )


def _highest(S: Tensor, P: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keys of the k highest scores and their weights; -1 and 0 where there is none."""
    missing = max(k - S.shape[-1], 0)
    S, order = S.sort(dim=-1, descending=True, stable=True)
    hidden = S[..., :k] == -torch.inf
    indices = order[..., :k].masked_fill(hidden, -1)
    weights = P.gather(-1, order[..., :k]).masked_fill(hidden, 0.0)
    return pad(indices, (0, missing), value=-1), pad(weights, (0, missing))
