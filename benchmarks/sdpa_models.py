"""The models of this package with attention by torch's scaled_dot_product_attention.

Projections, norms and weights are the very same, so what differs in time is attention alone.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_attention import Band
from fused_attention.nn import Attention, Cache, KVCache, Sequences, attention_layers


class SdpaAttention(Attention):
    """An Attention that hands its heads to scaled_dot_product_attention, for whole batches.

    Attributes:
        mask: what it is told; None is `is_causal`. Layers share it.
    """

    mask: Tensor | None = None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, queries: Sequences, keys: Sequences
    ) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        grouped = self.heads != self.kv_heads
        out = F.scaled_dot_product_attention(
            q, k, v, self.mask, is_causal=self.mask is None, enable_gqa=grouped
        )
        return out.transpose(1, 2)


class SdpaCache(KVCache):
    """A KVCache that scaled_dot_product_attention reads.

    Args:
        like: whose tensors and tokens it shares.
        whole: read all rows, with a mask over those in use (a static cache, whose shapes never
            change); else those in use, without a mask.
    """

    def __init__(self, like: KVCache, whole: bool) -> None:
        self.key, self.value, self.length, self.lengths = like.key, like.value, like.length, None
        self.whole = whole
        if whole:  # a weight of 0 does not hide a NaN
            self.key[:, :, self.length :] = self.value[:, :, self.length :] = 0

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        band: Band,
        *,
        new_lengths: Tensor | None = None,
        scale: float | None = None,
        alibi_slopes: Tensor | None = None,
    ) -> Tensor:
        keys, values = self.append(key, value)
        mask = None
        if self.whole:
            keys, values = self.key, self.value
            mask = torch.arange(self.max_length) < self.length
            mask = mask.expand(query.shape[2], -1)
        grouped = query.shape[1] != keys.shape[1]
        return F.scaled_dot_product_attention(
            query, keys, values, mask, scale=scale, enable_gqa=grouped
        )


def with_sdpa(model: nn.Module, mask: Tensor | None = None) -> nn.Module:
    """A copy of the model that shares its weights, with SdpaAttention for Attention."""
    shared = {id(weight): weight for weight in model.parameters()}
    peer = copy.deepcopy(model, shared)
    for layer in attention_layers(peer).values():
        layer.__class__ = SdpaAttention
        if isinstance(layer, SdpaAttention):
            layer.mask = mask
    return peer


def with_sdpa_caches(caches: list[Cache], whole: bool) -> list[Cache]:
    """The same caches, read by scaled_dot_product_attention."""
    return [SdpaCache(cache, whole) for cache in caches if isinstance(cache, KVCache)]
