"""The keys and values of the tokens so far, for decoding one token after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fused_attention import log
from fused_attention.decode_problem import PREFILL
from fused_attention.decoding import attention_with_kv_cache
from fused_attention.functional import attention
from fused_attention.masks import Band


class Cache(Protocol):
    """What a layer asks of its cache; see KVCache, whose keys stand in one tensor."""

    length: int
    lengths: Tensor | None

    def positions(self, new: int) -> Tensor: ...

    def append(
        self, key: Tensor, value: Tensor, new_lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

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
    ) -> Tensor: ...

    def crop(self, length: int) -> None: ...

    def reorder(self, rows: Tensor) -> None: ...


class KVCache:
    """Room for `max_length` keys and values of one attention layer; the numbers are written once.

    Attributes:
        key: [batch, heads, max_length, head_dim], of which the first `length` rows are in use.
        value: the same shape.
        length: number of tokens that it holds; of its longest row if they differ.
        lengths: int32 [batch], the tokens of each row; None if all hold `length`.

    Raises:
        ValueError: max_length is below 1.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        max_length: int,
        head_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if max_length < 1:
            raise ValueError(f"max_length: must be at least 1, got {max_length}")
        shape = (batch, heads, max_length, head_dim)
        self.key = torch.empty(shape, dtype=dtype, device=device)
        self.value = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0
        self.lengths: Tensor | None = None

    @property
    def max_length(self) -> int:
        return self.key.shape[2]

    def positions(self, new: int) -> Tensor:
        """The positions of the next `new` tokens: [new], or [batch, new] if the rows differ."""
        steps = torch.arange(new, device=self.key.device)
        return steps + (self.length if self.lengths is None else self.lengths[:, None])

    def append(
        self, key: Tensor, value: Tensor, new_lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Store the next tokens.

        Args:
            key: [batch, heads, new tokens, head_dim].
            value: the same shape.
            new_lengths: integer [batch], how many of the new tokens each row has; what lies
                beyond is padding. Default: all.

        Returns:
            All keys and values so far, as views of the cache.

        Raises:
            ValueError: they do not fit, in shape, dtype or number.
            RuntimeError: gradients are wanted, which a cache does not carry.
        """
        end = self.length + key.shape[2]
        self._check(key, value, end)
        if self.lengths is None:
            self.key[:, :, self.length : end] = key
            self.value[:, :, self.length : end] = value
        else:
            rows = torch.arange(len(key), device=key.device)[:, None]
            places = self.positions(key.shape[2])
            self.key[rows, :, places] = key.transpose(1, 2)
            self.value[rows, :, places] = value.transpose(1, 2)
        self._grow(key.shape[2], new_lengths)
        return self.key[:, :, : self.length], self.value[:, :, : self.length]

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
        """Store the next tokens and attend to all that the cache then holds, in one step.

        Args:
            query: [batch, query heads, length, head_dim].
            key: [batch, heads, new tokens, head_dim].
            value: the same shape.
            band: with offset None: its diagonal ends at the last query and the last token.
            new_lengths: as in `append`, of the queries too.
            scale: of the scores, default 1 / sqrt(head_dim).
            alibi_slopes: [query heads].

        Returns:
            out, like query.

        Raises:
            ValueError, RuntimeError: as `append`.
        """
        options: dict[str, Any] = {"scale": scale, "alibi_slopes": alibi_slopes}
        if query.shape[2] >= PREFILL or new_lengths is not None:
            return prefill(self, query, key, value, band, new_lengths, options)
        self._check(key, value, self.length + key.shape[2])
        options |= {
            "key": key,
            "value": value,
            "cache_lengths": self.length if self.lengths is None else self.lengths,
            "band": band,
        }
        if log.enabled:
            log.decoded("nn.KVCache", query, self.key, self.value, **options)
        out: Tensor = attention_with_kv_cache(query, self.key, self.value, **options)
        self._grow(key.shape[2], None)
        return out

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens of each row; `crop(0)` empties the cache.

        Raises:
            ValueError: length is not in [0, self.length].
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length: must be in [0, {self.length}], got {length}")
        self.length = length
        if self.lengths is not None:
            self.lengths = self.lengths.clamp(max=length) if length else None

    def reorder(self, rows: Tensor) -> None:
        """Batch row n becomes what row rows[n] is; beam search moves its hypotheses so.

        Args:
            rows: int64 [batch].
        """
        used = slice(self.length)
        self.key[:, :, used] = self.key[:, :, used].index_select(0, rows)
        self.value[:, :, used] = self.value[:, :, used].index_select(0, rows)
        if self.lengths is not None:
            self.lengths = self.lengths.index_select(0, rows)

    def _grow(self, new: int, new_lengths: Tensor | None) -> None:
        """Count `new` tokens in, of which each row has `new_lengths`."""
        if new_lengths is not None:
            before = self.length if self.lengths is None else self.lengths
            self.lengths = (before + new_lengths).to(torch.int32)
        elif self.lengths is not None:
            self.lengths = self.lengths + new
        self.length += new

    def _check(self, key: Tensor, value: Tensor, end: int) -> None:
        check_new(key, value, (self.key.shape[0], self.key.shape[1], self.key.shape[3]))
        if key.dtype != self.key.dtype:
            raise ValueError(f"cache: holds {self.key.dtype}, got {key.dtype}")
        if end > self.max_length:
            raise ValueError(f"cache: has room for {self.max_length} tokens, got {end}")

    def __repr__(self) -> str:
        batch, heads, room, head_dim = self.key.shape
        return (
            f"KVCache(batch={batch}, heads={heads}, length={self.length} of {room}, "
            f"head_dim={head_dim}, {self.key.dtype}, {self.key.device})"
        )


def prefill(
    cache: Cache,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    band: Band,
    new_lengths: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Append many tokens, then attend to all that the cache holds as `attention` does."""
    start = cache.length if cache.lengths is None else cache.lengths
    start = start + (key.shape[2] - query.shape[2])  # the token that query 0 is
    keys, values = cache.append(key, value, new_lengths)
    if isinstance(start, Tensor):
        options = options | {"band": band, "band_offsets": start}
    else:
        options = options | {"band": replace(band, offset=start)}
    options["kv_lengths"] = cache.lengths
    if log.enabled:
        log.attended("nn.KVCache", query, keys, values, **options)
    out: Tensor = attention(query, keys, values, **options)
    return out


def check_new(key: Tensor, value: Tensor, sizes: tuple[int, int, int]) -> None:
    """Whether keys and values may be stored where `sizes` are batch, heads and head_dim."""
    if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
        raise RuntimeError("cache: carries no gradients; call the module under torch.no_grad()")
    batch, heads, head_dim = sizes
    if (*key.shape[:2], key.shape[3]) != sizes or value.shape != key.shape:
        shapes = f"{tuple(key.shape)} and {tuple(value.shape)}"
        rule = f"takes keys and values of shape ({batch}, {heads}, new tokens, {head_dim})"
        raise ValueError(f"cache: {rule}, got {shapes}")
