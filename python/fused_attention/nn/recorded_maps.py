"""Attention maps of a model: what chosen layers and heads look at, while it runs on the kernels.

The kernels never have the weights. An observed layer also returns the log-sum-exp of its scores,
from which `fused_attention.attention_maps` computes what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fused_attention import AttentionMaps, attention_maps
from fused_attention.checks import wrong_value
from fused_attention.nn.attention import Attention, Observed

Maps = dict[str, list[AttentionMaps]]


def attention_layers(model: nn.Module) -> dict[str, Attention]:
    """The attention layers of a model by name, in the order of its modules."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Attention)}


@contextmanager
def record_attention_maps(
    model: nn.Module,
    layers: Iterable[str] | None = None,
    heads: Iterable[int] | None = None,
    *,
    weights: bool = True,
    rows: Iterable[int] | None = None,
    **facts: Any,
) -> Iterator[Maps]:
    """Within it, every call of the model leaves its maps in what the context gives.

    Nothing else changes: the calls still run on the kernels, with gradients if wanted (the maps
    have none). With weights=False and facts such as entropy=True nothing grows with the square of
    the length, whatever the model.

    Args:
        model: whose blocks have nn.Attention layers, called without a cache.
        layers: names from `attention_layers`; default all.
        heads: numbers of query heads; default all.
        weights: whether to keep the weights.
        rows: numbers of the queries whose weights are kept, negative ones from the end of each
            sequence; default all. One that a sequence does not have is left out.
        facts: what else is kept: column_mass, column_mean, entropy, argmax (True) and top_k (how
            many), as `fused_attention.attention_maps` has them.

    Yields:
        A dict that fills itself: for each layer a list with AttentionMaps for each sequence,
        without their batch dimension (of a batch without packing and padding: one for the whole
        batch, with it). Keys are numbered inside their sequence.

    Raises:
        TypeError: a fact has another name.
        ValueError: a layer or a head does not exist.
    """
    known = attention_layers(model)
    names = list(known) if layers is None else list(layers)
    chosen = None if heads is None else list(heads)
    for name in names:
        if name not in known:
            wrong_value("layers", f"must be of {', '.join(known) or 'no layer'}", name)
        for head in chosen or ():
            if not 0 <= head < known[name].heads:
                wrong_value("heads", f"must be in [0, {known[name].heads})", head)
    for fact in facts:
        if fact not in FACTS:
            raise TypeError(f"facts: must be of {', '.join(FACTS)}, got {fact}")
    if not weights and not any(facts.values()):
        wrong_value("weights", "must be True where no fact is asked for", weights)
    asked = facts | {"heads": chosen}
    own_rows = None if rows is None else list(rows)
    maps: Maps = {name: [] for name in names}
    for name in names:
        known[name].observer = _Observer(known[name], weights, own_rows, asked, maps[name])
    try:
        yield maps
    finally:
        for name in names:
            known[name].observer = None


FACTS = ("column_mass", "column_mean", "entropy", "argmax", "top_k")


class _Observer:
    def __init__(
        self,
        layer: Attention,
        weights: bool,
        rows: list[int] | None,
        asked: dict[str, Any],
        maps: list[AttentionMaps],
    ) -> None:
        self.layer, self.maps = layer, maps
        self.weights, self.rows, self.asked = weights, rows, asked

    @torch.no_grad()
    def __call__(self, call: Observed) -> None:
        if call.queries.packed:
            self.maps.extend(self._sequence(*one) for one in _packed_parts(call))
        elif call.queries.lengths is None and call.keys.lengths is None:
            self.maps.append(self._look(call.query, call.key, call.lse))
        else:
            self.maps.extend(self._sequence(*one) for one in _padded_parts(call))

    def _sequence(self, query: Tensor, key: Tensor, lse: Tensor) -> AttentionMaps:
        maps = self._look(query[None], key[None], lse[None])
        return AttentionMaps(*(None if fact is None else fact[0] for fact in maps))

    def _look(self, query: Tensor, key: Tensor, lse: Tensor) -> AttentionMaps:
        layer = self.layer
        return attention_maps(
            *(query, key, lse),
            rows=self._rows_of(query.shape[2]),
            band=layer.band,
            scale=layer.scale,
            alibi_slopes=layer.slopes,
            **self.asked,
        )

    def _rows_of(self, length: int) -> list[int] | range | None:
        if not self.weights:
            return None
        if self.rows is None:
            return range(length)
        return [row % length for row in self.rows if -length <= row < length]


def _packed_parts(call: Observed) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Query, key [heads, length, head_dim] and lse [heads, length] of each packed sequence."""
    assert call.queries.cu_seqlens is not None and call.keys.cu_seqlens is not None
    q_ends, k_ends = call.queries.cu_seqlens.tolist(), call.keys.cu_seqlens.tolist()
    for sequence in range(len(q_ends) - 1):
        q = slice(q_ends[sequence], q_ends[sequence + 1])
        k = slice(k_ends[sequence], k_ends[sequence + 1])
        yield call.query[q].transpose(0, 1), call.key[k].transpose(0, 1), call.lse[:, q]


def _padded_parts(call: Observed) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same of each row without its padding."""
    batch, _, len_q, _ = call.query.shape
    q_lengths = [len_q] * batch if call.queries.lengths is None else call.queries.lengths.tolist()
    len_k = call.key.shape[2]
    k_lengths = [len_k] * batch if call.keys.lengths is None else call.keys.lengths.tolist()
    for row, (q, k) in enumerate(zip(q_lengths, k_lengths, strict=True)):
        yield call.query[row, :, :q], call.key[row, :, :k], call.lse[row, :, :q]
