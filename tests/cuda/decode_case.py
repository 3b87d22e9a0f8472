"""One step of decoding for a test: its description, its tensors and its exact result.

What no kernel may look at holds NaN: keys beyond a row's length or before its start, the tails of
pages and the pages of nobody. Page numbers behind a sequence's last page, or before what its window
sees, point far outside of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from budget import assert_within_budget
from torch import Tensor

from fused_attention.masks import UNBOUNDED, Band
from fused_attention.reference import attention_reference

NO_PAGE = 1 << 20


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


@dataclass(frozen=True)
class DecodeInputs:
    """Tensors of one step: query [B, Hq, Lq, D], caches, and what they must hold afterwards."""

    case: DecodeCase
    query: Tensor
    key_cache: Tensor  # [rows, Hkv, capacity, D] or [pages, Hkv, page_size, D]
    value_cache: Tensor
    new_key: Tensor | None
    new_value: Tensor | None
    lengths: Tensor
    starts: Tensor | None
    cache_rows: Tensor | None
    block_table: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    alibi_slopes: Tensor | None
    sinks: Tensor | None

    @property
    def scale(self) -> float:
        return self.case.head_dim**-0.5 if self.case.scale is None else self.case.scale

    @property
    def capacity(self) -> int:
        """Keys that fit."""
        size = self.key_cache.shape[2]
        return size if self.block_table is None else size * self.block_table.shape[1]

    def rows_of(self, cache: Tensor, b: int, end: int) -> Tensor:
        """Keys or values [0, end) of batch row b: [Hkv, end, D]."""
        if self.block_table is None:
            row = b if self.cache_rows is None else int(self.cache_rows[b])
            return cache[row, :, :end]
        size = self.case.page_size
        numbers = self.block_table[b, : -(-end // size)].tolist()
        pages = [cache[0 if number == NO_PAGE else number] for number in numbers]
        return torch.cat([cache[0, :, :0], *pages], dim=1)[:, :end]

    def expected_caches(self) -> tuple[Tensor, Tensor]:
        """The caches after the append; rotated keys in fp32, then rounded."""
        key, value = self.key_cache.clone(), self.value_cache.clone()
        if self.new_key is None or self.new_value is None:
            return key, value
        for b, length in enumerate(self.lengths.tolist()):
            for n in range(min(self.case.len_new, self.capacity - length)):
                row, at = self._place(b, length + n)
                key[row, :, at] = self.rotated(self.new_key[b, :, n], length + n)
                value[row, :, at] = self.new_value[b, :, n]
        return key, value

    def _place(self, b: int, position: int) -> tuple[int, int]:
        if self.block_table is None:
            return (b if self.cache_rows is None else int(self.cache_rows[b])), position
        page, at = divmod(position, self.case.page_size)
        return int(self.block_table[b, page]), at

    def rotated(self, x: Tensor, position: int) -> Tensor:
        """[..., D] turned by the angles of one position."""
        dims = self.case.rotary
        if self.cos is None or self.sin is None:
            return x
        cos, sin = self.cos[position].float(), self.sin[position].float()
        turning, rest = x[..., :dims].float(), x[..., dims:]
        if self.case.rotary_interleaved:
            first, second = turning[..., 0::2], turning[..., 1::2]
            pairs = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
            turned = pairs.flatten(-2)
        else:
            first, second = turning.chunk(2, dim=-1)
            turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return torch.cat((turned.to(x.dtype), rest), dim=-1)

    @cached_property
    def rotated_query(self) -> Tensor:
        query = self.query.clone()
        for b, length in enumerate(self.lengths.tolist()):
            for i in range(self.case.len_q):
                query[b, :, i] = self.rotated(self.query[b, :, i], length + i)
        return query

    def reference(self, caches: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """out [B, Hq, Lq, Dv] and lse of the caches as they are after the append."""
        results = [self._row_reference(caches, b, dtype) for b in range(len(self.case.lengths))]
        return torch.cat([out for out, _ in results]), torch.cat([lse for _, lse in results])

    def _row_reference(
        self, caches: tuple[Tensor, Tensor], b: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        case = self.case
        end = min(case.lengths[b] + case.len_new, self.capacity)
        start = 0 if case.starts is None else min(case.starts[b], end)
        left = max(0, end - case.len_q - case.left) if case.left < UNBOUNDED else 0
        start = max(start, min(left, end))  # what is further left may hold NaN
        key, value = (self.rows_of(cache, b, end)[None, :, start:] for cache in caches)
        slopes = self.alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[b : b + 1]
        return attention_reference(
            self.rotated_query[b : b + 1],
            key,
            value,
            band=Band(case.left, case.right, end - case.len_q - start),
            scale=self.scale,
            softcap=case.softcap,
            alibi_slopes=slopes,
            sinks=self.sinks,
            compute_dtype=dtype,
        )

    def assert_correct(self, out: Tensor, lse: Tensor, key_cache: Tensor, value_cache: Tensor):
        """The caches hold what was appended and nothing else changed; out and lse are in budget."""
        expected_key, expected_value = self.expected_caches()
        _assert_bits(value_cache, expected_value, "value cache")
        if self.cos is None:
            _assert_bits(key_cache, expected_key, "key cache")
        # A rotated key may be rounded from the neighbouring float: one unit in the last place.
        torch.testing.assert_close(
            key_cache, expected_key, rtol=2 * torch.finfo(self.case.dtype).eps, atol=1e-6,
            equal_nan=True,
        )  # fmt: skip
        caches = (key_cache, value_cache)
        exact = self.reference(caches, torch.float64)
        baseline = self.reference(caches, self.case.dtype)
        baseline_lse = self.reference(caches, torch.float32)[1]
        assert_within_budget(out, exact[0], baseline[0], name=f"{self.case}: out")
        assert_within_budget(lse, exact[1], baseline_lse, name=f"{self.case}: lse")


def _assert_bits(actual: Tensor, expected: Tensor, name: str) -> None:
    assert torch.equal(actual.view(torch.int16), expected.view(torch.int16)), name


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
