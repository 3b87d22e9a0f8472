"""One step of decoding for a test: its description, and how it becomes tensors.

What no kernel may look at holds NaN: keys beyond a row's length or before its start, the tails of
pages and the pages of nobody. Page numbers behind a sequence's last page, or before what its window
sees, point far outside of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from cuda.decode_inputs import NO_PAGE, DecodeInputs
from torch import Tensor

from fused_attention.masks import UNBOUNDED


@dataclass(frozen=True)
class DecodeCase:
    """A step of decoding, without its numbers.

    Attributes:
        lengths: keys in the cache before the step, for each batch row.
        len_new: keys that are appended.
        capacity: of a contiguous cache; None is just enough.
        page_size: 0: contiguous.
        starts: first valid key of each row.
        cache_rows: which row of a larger contiguous cache belongs to each batch row.
        rotary: dims that turn.
        odd: rows that begin at no multiple of 16 bytes.
    """

    name: str
    lengths: tuple[int, ...] = (70, 33)
    heads_q: int = 2
    heads_kv: int = 2
    len_q: int = 1
    len_new: int = 0
    head_dim: int = 64
    value_dim: int | None = None
    dtype: torch.dtype = torch.bfloat16
    capacity: int | None = None
    page_size: int = 0
    starts: tuple[int, ...] | None = None
    cache_rows: tuple[int, ...] | None = None
    left: int = UNBOUNDED
    right: int = 0
    softcap: float = 0.0
    alibi: str | None = None
    sinks: bool = False
    rotary: int = 0
    rotary_interleaved: bool = False
    rotary_dtype: torch.dtype | None = None
    splits: int = 1
    batch_invariant: bool = False
    odd: bool = False
    scale: float | None = None

    def __str__(self) -> str:
        return self.name

    def make(self, seed: int = 0) -> DecodeInputs:
        return _Maker(self, seed).inputs()

    def with_dtype(self, dtype: torch.dtype) -> DecodeCase:
        return replace(self, dtype=dtype)


class _Maker:
    """Draws the tensors of a case."""

    def __init__(self, case: DecodeCase, seed: int) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(seed)
        self.value_dim = case.head_dim if case.value_dim is None else case.value_dim
        self.longest = max((n + case.len_new for n in case.lengths), default=0)
        self.capacity = self.longest if case.capacity is None else case.capacity

    def inputs(self) -> DecodeInputs:
        case, batch = self.case, len(self.case.lengths)
        table = self._table() if case.page_size else None
        new = (None, None)
        if case.len_new:
            shape = (batch, case.heads_kv, case.len_new)
            new = (self._normal(*shape, case.head_dim), self._normal(*shape, self.value_dim))
        cos, sin = self._angles()
        heads = case.heads_q
        slopes = {None: None, "h": (heads,), "bh": (batch, heads)}[case.alibi]
        return DecodeInputs(
            case,
            self._normal(batch, heads, case.len_q, case.head_dim),
            self._cache(table, case.head_dim),
            self._cache(table, self.value_dim),
            *new,
            self._integers(case.lengths),
            None if case.starts is None else self._integers(case.starts),
            None if case.cache_rows is None else self._integers(case.cache_rows),
            table,
            cos,
            sin,
            None if slopes is None else self._draw(*slopes).abs(),
            self._draw(heads) if case.sinks else None,
        )

    @staticmethod
    def _integers(values: tuple[int, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def _normal(self, *shape: int) -> Tensor:
        return self._padded(self._draw(*shape).to(self.case.dtype))

    def _padded(self, tensor: Tensor) -> Tensor:
        if not self.case.odd:
            return tensor
        return torch.nn.functional.pad(tensor, (3, 2), value=torch.nan)[..., 3:-2]

    def _table(self) -> Tensor:
        """Pages in a random order, as many as each row needs; no others."""
        case = self.case
        pages = -(-self.capacity // case.page_size)
        used = [-(-(n + case.len_new) // case.page_size) for n in case.lengths]
        order = (torch.randperm(sum(used) + 1, generator=self.generator) + 1).tolist()
        table = torch.full((len(used), pages), NO_PAGE, dtype=torch.int32)
        for b, count in enumerate(used):
            length = case.lengths[b] + case.len_new
            first = max(0, length - case.len_q - case.left) // case.page_size
            for n in range(count):
                number = order.pop()
                # What the window has passed by may have been given to somebody else.
                table[b, n] = number if n >= first else NO_PAGE
        return table

    def _cache(self, table: Tensor | None, dim: int) -> Tensor:
        case = self.case
        if table is None:
            rows = len(case.lengths) if case.cache_rows is None else max(case.cache_rows) + 2
            shape = (rows, case.heads_kv, self.capacity, dim)
        else:
            pages = table[table < NO_PAGE]
            shape = (
                int(pages.max()) + 2 if pages.numel() else 1,
                case.heads_kv,
                case.page_size,
                dim,
            )
        cache = torch.full(shape, torch.nan, dtype=case.dtype)
        for b, length in enumerate(case.lengths):
            first = 0 if case.starts is None else case.starts[b]
            for position in range(first, min(length, self.capacity)):
                if table is None:
                    row, at = (b if case.cache_rows is None else case.cache_rows[b]), position
                else:
                    page, at = divmod(position, case.page_size)
                    row = int(table[b, page])
                    if row == NO_PAGE:
                        continue
                cache[row, :, at] = self._draw(case.heads_kv, dim).to(case.dtype)
        return self._padded(cache)

    def _angles(self) -> tuple[Tensor | None, Tensor | None]:
        if not self.case.rotary:
            return None, None
        angle = self._draw(self.longest + self.case.len_q, self.case.rotary // 2) * 3
        dtype = self.case.dtype if self.case.rotary_dtype is None else self.case.rotary_dtype
        return angle.cos().to(dtype), angle.sin().to(dtype)
