"""Which keys a query sees: the band, the only mask of this package, and what it means for tiles.

Causal attention, sliding windows, prefix and chunk offsets and right padding are all one
inequality, so kernels have no special cases. `csrc/include/fused_attention/band.h` and
`triton_kernels/band.py` state the same functions; `tests/test_masks.py` pins all of them to one
truth table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

UNBOUNDED = 1 << 30


class TileKind(IntEnum):
    """What a tile of scores needs: nothing, the mask applied, or no mask at all."""

    EMPTY = 0
    PARTIAL = 1
    FULL = 2


@dataclass(frozen=True)
class Band:
    """Key j is visible to query i iff i + offset - left <= j <= i + offset + right.

    Attributes:
        left: keys visible before the diagonal, in [0, UNBOUNDED]; UNBOUNDED hides none.
        right: keys visible after the diagonal, in [0, UNBOUNDED]; 0 is causal.
        offset: the key on the diagonal of query 0, |offset| <= UNBOUNDED. None is Lk - Lq, which
            lets the last query meet the last key (what decoding with a cache needs);
            0 is what scaled_dot_product_attention calls causal.

    Both ends are inclusive. UNBOUNDED hides no key as long as the lengths and |offset| together
    stay below it.

    Raises:
        TypeError: an argument is not an int (a bool is none either).
        ValueError: an argument is out of its range.
    """

    left: int = UNBOUNDED
    right: int = UNBOUNDED
    offset: int | None = None

    def __post_init__(self) -> None:
        _check_int("left", self.left, 0, UNBOUNDED)
        _check_int("right", self.right, 0, UNBOUNDED)
        if self.offset is not None:
            _check_int("offset", self.offset, -UNBOUNDED, UNBOUNDED)

    @classmethod
    def full(cls) -> Band:
        """Every query sees every key."""
        return cls()

    @classmethod
    def causal(cls, offset: int | None = None) -> Band:
        """No query sees a key after its diagonal."""
        return cls(UNBOUNDED, 0, offset)

    @classmethod
    def window(cls, left: int | None, right: int | None, offset: int | None = None) -> Band:
        """`left` keys before the diagonal, the diagonal, `right` keys after it; None: all."""
        return cls(
            UNBOUNDED if left is None else left, UNBOUNDED if right is None else right, offset
        )

    @classmethod
    def sliding(cls, tokens: int, offset: int | None = None) -> Band:
        """Causal window of `tokens` >= 1 keys, the diagonal among them (Hugging Face's count)."""
        _check_int("tokens", tokens, 1, UNBOUNDED)
        return cls(tokens - 1, 0, offset)

    @property
    def is_full(self) -> bool:
        """Whether the band hides nothing, whatever the lengths."""
        return self.left == UNBOUNDED and self.right == UNBOUNDED

    def resolve(self, len_q: int, len_k: int) -> Band:
        """The same band with its offset as a number."""
        return self if self.offset is not None else replace(self, offset=len_k - len_q)

    def mask(
        self,
        len_q: int,
        len_k: int,
        kv_lengths: Tensor | None = None,
        device: torch.device | str | None = None,
        band_offsets: Tensor | None = None,
    ) -> Tensor:
        """The band as a bool tensor, True where visible.

        Args:
            len_q: number of queries.
            len_k: number of keys.
            kv_lengths: integer [B], keys at and after a row's length are hidden.
            device: of the result; the default is that of the tensors given, else torch's default.
            band_offsets: integer [B], replaces `offset` row by row.

        Returns:
            [len_q, len_k], or [B, 1, len_q, len_k] when a [B] tensor is given.
        """
        if device is None:
            device = next((t.device for t in (kv_lengths, band_offsets) if t is not None), None)
        diagonal = self.diagonal(len_q, len_k, device, band_offsets)
        k_row = torch.arange(len_k, device=device)
        kv_length = len_k if kv_lengths is None else _per_batch_row(kv_lengths, device)
        visible: Tensor = band_visible(replace(self, offset=0), diagonal, k_row, kv_length)
        return visible

    def diagonal(
        self,
        len_q: int,
        len_k: int,
        device: torch.device | str | None = None,
        band_offsets: Tensor | None = None,
    ) -> Tensor:
        """i + offset of each query i: int64 [len_q, 1], or [B, 1, len_q, 1] with band_offsets."""
        q_row = torch.arange(len_q, device=device)[:, None]
        if band_offsets is not None:
            return q_row + _per_batch_row(band_offsets, device)
        return q_row + _offset(self.resolve(len_q, len_k))

    def __str__(self) -> str:
        if self.is_full:
            return "full"
        offset = "" if self.offset is None else f"offset={self.offset}"
        if self.left == UNBOUNDED and self.right == 0:
            return f"causal({offset})" if offset else "causal"
        ends = [str(None if end == UNBOUNDED else end) for end in (self.left, self.right)]
        return f"window({', '.join(ends + [offset] if offset else ends)})"


def band_visible(band: Band, q_row: Any, k_row: Any, kv_length: Any) -> Any:
    """Whether the key is visible to the query: the definition, for ints and for tensors.

    Args:
        band: with its offset resolved.
        q_row: index of the query.
        k_row: index of the key.
        kv_length: number of keys that exist.
    """
    diagonal = q_row + _offset(band)
    in_band = (diagonal - band.left <= k_row) & (k_row <= diagonal + band.right)
    return in_band & (k_row < kv_length)


def band_kv_range(band: Band, q_begin: int, q_end: int, kv_length: int) -> tuple[int, int]:
    """Keys [begin, end) that any of the queries [q_begin, q_end) sees; (0, 0) if none."""
    if q_begin >= q_end:
        return 0, 0
    begin = q_begin + _offset(band) - band.left
    end = q_end + _offset(band) + band.right
    return _range(max(0, begin), min(kv_length, end))


def band_full_kv_range(band: Band, q_begin: int, q_end: int, kv_length: int) -> tuple[int, int]:
    """Keys [begin, end) that all of the queries [q_begin, q_end) see; (0, 0) if none."""
    if q_begin >= q_end:
        return 0, 0
    begin = q_end - 1 + _offset(band) - band.left
    end = q_begin + _offset(band) + band.right + 1
    return _range(max(0, begin), min(kv_length, end))


def band_q_range(band: Band, k_begin: int, k_end: int, len_q: int) -> tuple[int, int]:
    """Queries [begin, end) that see any of the keys [k_begin, k_end); (0, 0) if none.

    The caller keeps k_end <= kv_length: a key that does not exist is seen by nobody.
    """
    if k_begin >= k_end:
        return 0, 0
    begin = k_begin - band.right - _offset(band)
    end = k_end + band.left - _offset(band)
    return _range(max(0, begin), min(len_q, end))


def band_tile_kind(
    band: Band, q_begin: int, q_end: int, k_begin: int, k_end: int, kv_length: int
) -> TileKind:
    """How much of the tile of queries [q_begin, q_end) and keys [k_begin, k_end) is visible."""
    begin, end = band_kv_range(band, q_begin, q_end, kv_length)
    if max(begin, k_begin) >= min(end, k_end):
        return TileKind.EMPTY
    begin, end = band_full_kv_range(band, q_begin, q_end, kv_length)
    return TileKind.FULL if begin <= k_begin and k_end <= end else TileKind.PARTIAL


def _range(begin: int, end: int) -> tuple[int, int]:
    return (begin, end) if begin < end else (0, 0)


def _offset(band: Band) -> int:
    if band.offset is None:
        raise ValueError("band: its offset must be a number here (use Band.resolve), got None")
    return band.offset


def _per_batch_row(values: Tensor, device: torch.device | str | None) -> Tensor:
    """[B] as [B, 1, 1, 1], which broadcasts against [B, H, Lq, Lk]."""
    return values.to(device=device)[:, None, None, None]


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: must be an int, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: must be in [{low}, {high}], got {value}")
