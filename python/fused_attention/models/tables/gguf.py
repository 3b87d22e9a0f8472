"""Weights of GGUF files under llama.cpp's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fused_attention.models.weights import Entry, Stacked, Table, module


@dataclass(frozen=True)
class StackedHeads:
    """Query, key and value heads one below the other, out of matrices in llama.cpp's order.

    llama.cpp turns neighbouring elements of a query's or key's head; in the models here the two
    elements of a pair are half a head apart.
    """

    heads: tuple[int, int, int]
    head_dim: int

    def load(self, theirs: Sequence[Tensor]) -> Sequence[Tensor]:
        q, k, v = theirs
        return [torch.cat((*(self._moved(x, (-1, 2)) for x in (q, k)), v))]

    def save(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        q, k, v = ours[0].split([heads * self.head_dim for heads in self.heads])
        return [*(self._moved(x, (2, -1)) for x in (q, k)), v]

    def _moved(self, matrix: Tensor, pairs: tuple[int, int]) -> Tensor:
        """The rows of each head [pairs] in the other order."""
        by_head: Tensor = matrix.unflatten(0, (-1, self.head_dim)).unflatten(1, pairs)
        return by_head.transpose(1, 2).flatten(0, 2)


def llama(config: Any) -> Table:
    """Of llama.cpp's architecture "llama", which Mistral and SmolLM have too."""
    config = config.resolved()
    heads = StackedHeads((config.heads, config.kv_heads, config.kv_heads), config.head_dim)
    hidden = Stacked(2 * (config.hidden_dim,))
    entries: list[Entry] = [
        *module("embedding", "token_embd", bias=False),
        *module("norm", "output_norm", bias=False),
    ]
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"blk.{layer}"
        projections = [f"{theirs}.attn_{name}" for name in "qkv"]
        factors = [f"{theirs}.ffn_{name}" for name in ("gate", "up")]
        entries += [
            *module(f"{ours}.attention_norm", f"{theirs}.attn_norm", bias=False),
            *module(f"{ours}.attention.in_proj", projections, heads, bias=False),
            *module(f"{ours}.attention.out_proj", f"{theirs}.attn_output", bias=False),
            *module(f"{ours}.feed_forward_norm", f"{theirs}.ffn_norm", bias=False),
            *module(f"{ours}.feed_forward.up", factors, hidden, bias=False),
            *module(f"{ours}.feed_forward.down", f"{theirs}.ffn_down", bias=False),
        ]
    if not config.tied:
        entries += module("head", "output", bias=False)
    return Table(tuple(entries))
