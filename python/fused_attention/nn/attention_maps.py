"""Attention maps of a model: the weights of chosen layers and heads, and of no others.

The kernels never have the weights. An observed layer also returns the log-sum-exp of its scores,
from which they follow head by head (`attention_weights`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fused_attention.checks import wrong_value
from fused_attention.nn.attention import Attention, Observed
from fused_attention.nn.attention_weights import each_heads_weights

Maps = dict[str, list[Tensor]]


def attention_layers(model: nn.Module) -> dict[str, Attention]:
    """The attention layers of a model by name, in the order of its modules."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Attention)}


@contextmanager
def attention_maps(
    model: nn.Module,
    layers: Iterable[str] | None = None,
    heads: Iterable[int] | None = None,
) -> Iterator[Maps]:
    """Within it, every call of the model leaves its weights in what the context gives.

    Nothing else changes: the calls still run on the kernels, with gradients if wanted (the maps
    have none).

    Args:
        model: whose blocks have nn.Attention layers, called without a cache.
        layers: names from `attention_layers`; default all.
        heads: numbers of query heads; default all.

    Yields:
        A dict that fills itself: for each layer a list with one map for each sequence (of a batch
        without packing and padding: one for the whole batch), weights before dropout
        [chosen heads, len_q, len_k] (of a batch [batch, chosen heads, len_q, len_k]) in fp32.

    Raises:
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
    maps: Maps = {name: [] for name in names}
    for name in names:
        known[name].observer = _Observer(known[name], chosen, maps[name])
    try:
        yield maps
    finally:
        for name in names:
            known[name].observer = None


class _Observer:
    def __init__(self, layer: Attention, heads: list[int] | None, maps: list[Tensor]) -> None:
        self.layer, self.maps = layer, maps
        self.heads = list(range(layer.heads)) if heads is None else heads

    @torch.no_grad()
    def __call__(self, call: Observed) -> None:
        if call.queries.packed:
            self.maps.extend(self._sequence(*one) for one in _packed_parts(call))
        elif call.queries.lengths is None and call.keys.lengths is None:
            self.maps.append(self._weights(call.query, call.key, call.lse))
        else:
            self.maps.extend(self._sequence(*one) for one in _padded_parts(call))

    def _sequence(self, query: Tensor, key: Tensor, lse: Tensor) -> Tensor:
        return self._weights(query[None], key[None], lse[None])[0]

    def _weights(self, query: Tensor, key: Tensor, lse: Tensor) -> Tensor:
        """[B, chosen heads, Lq, Lk]."""
        layer = self.layer
        shared = layer.heads // layer.kv_heads
        scale = layer.head_dim**-0.5 if layer.scale is None else layer.scale
        size = (query.shape[2], key.shape[2])
        visible = layer.band.mask(*size, device=query.device)
        hidden = None if layer.band.is_full else ~visible
        parts = []
        for head in self.heads:
            at, group = slice(head, head + 1), slice(head // shared, head // shared + 1)
            bias: Tensor | None = None
            if layer.slopes is not None:
                diagonal = layer.band.diagonal(*size, query.device)
                distance = (diagonal - torch.arange(size[1], device=query.device)).abs()
                bias = -layer.slopes[head] * distance[None, None]
            q, k = query[:, at], key[:, group]
            parts.append(each_heads_weights(q, k, lse[:, at], scale, bias, hidden))
        return torch.cat(parts, 1)


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
