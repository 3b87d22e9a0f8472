"""The keys and values of the tokens so far, for decoding one token after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_attention import log
from fused_attention.decoding import attention_with_kv_cache
from fused_attention.masks import Band


class KVCache:
    """Room for `max_length` keys and values of one attention layer; the numbers are written once.

    Attributes:
        key: [batch, heads, max_length, head_dim], of which the first `length` rows are in use.
        value: the same shape.
        length: number of tokens that it holds.

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

    @property
    def max_length(self) -> int:
        return self.key.shape[2]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the next tokens.

        Args:
            key: [batch, heads, new tokens, head_dim].
            value: the same shape.

        Returns:
            All keys and values so far, as views of the cache.

        Raises:
            ValueError: they do not fit, in shape, dtype or number.
            RuntimeError: gradients are wanted, which a cache does not carry.
        """
        end = self.length + key.shape[2]
        self._check(key, value, end)
        self.key[:, :, self.length : end] = key
        self.value[:, :, self.length : end] = value
        self.length = end
        return self.key[:, :, :end], self.value[:, :, :end]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, band: Band) -> Tensor:
        """Store the next tokens and attend to all that the cache then holds, in one step.

        Args:
            query: [batch, query heads, length, head_dim].
            key: [batch, heads, new tokens, head_dim].
            value: the same shape.
            band: with offset None: its diagonal ends at the last query and the last token.

        Returns:
            out, like query.

        Raises:
            ValueError, RuntimeError: as `append`.
        """
        end = self.length + key.shape[2]
        self._check(key, value, end)
        options: dict[str, Any] = {
            "key": key,
            "value": value,
            "cache_lengths": self.length,
            "band": band,
        }
        if log.enabled:
            log.decoded("nn.KVCache", query, self.key, self.value, **options)
        out: Tensor = attention_with_kv_cache(query, self.key, self.value, **options)
        self.length = end
        return out

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens; `crop(0)` empties the cache.

        Raises:
            ValueError: length is not in [0, self.length].
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length: must be in [0, {self.length}], got {length}")
        self.length = length

    def reorder(self, rows: Tensor) -> None:
        """Batch row n becomes what row rows[n] is; beam search moves its hypotheses so.

        Args:
            rows: int64 [batch].
        """
        used = slice(self.length)
        self.key[:, :, used] = self.key[:, :, used].index_select(0, rows)
        self.value[:, :, used] = self.value[:, :, used].index_select(0, rows)

    def _check(self, key: Tensor, value: Tensor, end: int) -> None:
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise RuntimeError("cache: carries no gradients; call the module under torch.no_grad()")
        if key.dtype != self.key.dtype:
            raise ValueError(f"cache: holds {self.key.dtype}, got {key.dtype}")
        batch, heads, _, head_dim = self.key.shape
        if (*key.shape[:2], key.shape[3]) != (batch, heads, head_dim) or value.shape != key.shape:
            shapes = f"{tuple(key.shape)} and {tuple(value.shape)}"
            rule = f"takes keys and values of shape ({batch}, {heads}, new tokens, {head_dim})"
            raise ValueError(f"cache: {rule}, got {shapes}")
        if end > self.max_length:
            raise ValueError(f"cache: has room for {self.max_length} tokens, got {end}")

    def __repr__(self) -> str:
        batch, heads, room, head_dim = self.key.shape
        return (
            f"KVCache(batch={batch}, heads={heads}, length={self.length} of {room}, "
            f"head_dim={head_dim}, {self.key.dtype}, {self.key.device})"
        )
