"""The attention of a model's block: projections around the fused kernels, and a cache.

Unlike MultiHeadAttention, which takes nn.MultiheadAttention's place, it also runs on packed batches
and has heads of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_attention import log
from fused_attention.checks import wrong_value
from fused_attention.functional import attention, attention_varlen
from fused_attention.masks import Band
from fused_attention.nn.kv_cache import Cache, KVCache
from fused_attention.nn.paged_kv_cache import PagedKVCache
from fused_attention.nn.positions import alibi_slopes
from fused_attention.nn.rotary import Rotation
from fused_attention.nn.sequences import Sequences

FULL, WHOLE = Band.full(), Sequences()


class Memory(NamedTuple):
    """What a decoder's cross-attention looks at, projected once for all steps of decoding."""

    key: Tensor  # [batch, length, kv_heads, head_dim], packed [total, kv_heads, head_dim]
    value: Tensor
    sequences: Sequences = WHOLE


class Observed(NamedTuple):
    """One call of an Attention, from which its weights follow (see `record_attention_maps`)."""

    query: Tensor  # [batch, heads, len_q, head_dim], packed [total, heads, head_dim]
    key: Tensor  # the same with kv_heads and len_k
    lse: Tensor  # [batch, heads, len_q], packed [heads, total]
    queries: Sequences
    keys: Sequences


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) with grouped heads, self- or cross-attention.

    Args:
        dim: features of input and output.
        heads: query heads.
        kv_heads: heads of key and value, a divisor of `heads` (Ainslie et al. 2023); default heads.
        head_dim: features of a head, default dim / heads.
        bias: whether query, key and value get a bias.
        out_bias: whether the output does.
        dropout: chance in [0, 1) that a weight is dropped in training.
        band: which keys a query sees, such as Band.causal() or Band.sliding(512).
        scale: of the scores, default 1 / sqrt(head_dim).
        alibi: whether the distance lowers the scores, by a slope for each head.

    Attributes:
        in_proj: nn.Linear whose rows are those of all query heads, then key heads, then value
            heads.
        out_proj: nn.Linear.
        observer: called with each call's Observed; None costs nothing.

    Raises:
        ValueError: a size is not positive or does not divide another, or dropout is out of range.
    """

    slopes: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        dropout: float = 0.0,
        band: Band = FULL,
        scale: float | None = None,
        alibi: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            wrong_value("kv_heads", f"must divide heads {heads}", kv_heads)
        if head_dim is None and dim % heads:
            wrong_value("dim", f"must be divisible by heads {heads}, or head_dim be given", dim)
        if not 0.0 <= dropout < 1.0:
            wrong_value("dropout", "must be in [0, 1)", dropout)
        self.dim, self.heads, self.kv_heads = dim, heads, kv_heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.dropout, self.band, self.scale = dropout, band, scale
        self.observer: Callable[[Observed], None] | None = None
        rows = (heads + 2 * kv_heads) * self.head_dim
        self.in_proj = nn.Linear(dim, rows, bias=bias, device=device, dtype=dtype)
        width = heads * self.head_dim
        self.out_proj = nn.Linear(width, dim, bias=out_bias, device=device, dtype=dtype)
        slopes = alibi_slopes(heads, device) if alibi else None
        self.register_buffer("slopes", slopes, persistent=False)

    def new_cache(
        self,
        batch: int,
        max_length: int,
        *,
        page_size: int | None = None,
        pages: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> KVCache | PagedKVCache:
        """An empty cache for `forward`, on the parameters' device and by default in their dtype.

        Args:
            page_size: tokens of a page; None is one tensor for all tokens.
            pages: of all rows together, see PagedKVCache.
        """
        weight = self.out_proj.weight
        sizes = (batch, self.kv_heads, max_length, self.head_dim)
        dtype = dtype or weight.dtype
        if page_size is None:
            return KVCache(*sizes, dtype=dtype, device=weight.device)
        return PagedKVCache(
            *sizes, page_size=page_size, pages=pages, dtype=dtype, device=weight.device
        )

    def remember(self, states: Tensor, sequences: Sequences = WHOLE) -> Memory:
        """The keys and values of `states` [batch, length, dim] or packed [total, dim]."""
        at = self.heads * self.head_dim
        key, value = self._project(states, slice(at, None)).chunk(2, -2)
        return Memory(key, value, sequences)

    def forward(
        self,
        x: Tensor,
        sequences: Sequences = WHOLE,
        *,
        rotation: Rotation | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Attention of the tokens to each other or, with `memory`, to that.

        Args:
            x: [batch, length, dim], packed [total, dim].
            sequences: where they are. With a cache, its lengths count the new tokens.
            rotation: turns queries and keys, from Rotary.rotation.
            cache: from `new_cache`; the keys and values are stored in it, and the tokens see all
                that it holds then.
            memory: from `remember`; instead of keys and values of x.

        Returns:
            Like x.

        Raises:
            TypeError, ValueError: an argument has a wrong type, shape or value.
            RuntimeError: gradients through a cache, or an observer of one.
        """
        if memory is not None:
            q = self._project(x, slice(self.heads * self.head_dim))
            k, v, key_sequences = memory
        else:
            q, k, v = self._rotated(self._project(x, slice(None)), rotation)
            key_sequences = sequences
        if cache is not None:
            out = self._attend_to_cache(q, k, v, sequences, cache)
        else:
            out = self.attend(q, k, v, sequences, key_sequences)
        projected: Tensor = self.out_proj(out.flatten(-2))
        return projected

    def _project(self, x: Tensor, rows: slice) -> Tensor:
        """The product with these rows of in_proj, [..., heads, head_dim]."""
        weight, bias = self.in_proj.weight, self.in_proj.bias
        if rows == slice(None):
            product = self.in_proj(x)
        else:
            product = F.linear(x, weight[rows], None if bias is None else bias[rows])
        heads: Tensor = product.unflatten(-1, (-1, self.head_dim))
        return heads

    def _rotated(self, heads: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value heads; the first two turned, in one go."""
        sizes = (self.heads, self.kv_heads)
        if rotation is None:
            q, k, v = heads.split((*sizes, self.kv_heads), -2)
            return q, k, v
        both, v = heads.split((sum(sizes), self.kv_heads), -2)
        q, k = rotation.turn(both).split(sizes, -2)
        return q, k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, queries: Sequences, keys: Sequences
    ) -> Tensor:
        """What the queries see, without a cache; a subclass may do it in another way.

        Args:
            q: [batch, length, heads, head_dim], packed [total, heads, head_dim].
            k, v: the same with kv_heads and the length of `keys`.

        Returns:
            Like q.
        """
        options: dict[str, Any] = {
            "band": self.band,
            "scale": self.scale,
            "alibi_slopes": self.slopes,
            "dropout_p": self.dropout if self.training else 0.0,
        }
        attend: Callable[..., Any] = attention
        arguments: tuple[Any, ...]
        if queries.packed:
            attend, arguments = attention_varlen, (q, k, v, queries.cu_seqlens, keys.cu_seqlens)
            options |= {"max_seqlen_q": queries.max_length, "max_seqlen_k": keys.max_length}
        else:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            arguments, options["kv_lengths"] = (q, k, v), keys.lengths
        if log.enabled:
            log.attended("nn.Attention", *arguments, **options)
        if self.observer is None:
            out = attend(*arguments, **options)
        else:
            out, lse = attend(*arguments, return_lse=True, **options)
            self.observer(Observed(q, k, lse, queries, keys))
        by_token: Tensor = out if queries.packed else out.transpose(1, 2)
        return by_token

    def _attend_to_cache(
        self, q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, cache: Cache
    ) -> Tensor:
        if sequences.packed:
            raise ValueError("cache: takes rows of a batch, got packed sequences")
        if self.observer is not None:
            raise RuntimeError("cache: attention maps need all tokens in one call without a cache")
        if self.training and self.dropout > 0:
            raise RuntimeError("cache: goes with a model in evaluation mode (call eval())")
        out = cache.attend(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            self.band,
            new_lengths=sequences.lengths,
            scale=self.scale,
            alibi_slopes=self.slopes,
        )
        return out.transpose(1, 2)

    def extra_repr(self) -> str:
        grouped = "" if self.kv_heads == self.heads else f", kv_heads={self.kv_heads}"
        return f"{self.dim}, {self.heads}{grouped}, head_dim={self.head_dim}, band={self.band}"
