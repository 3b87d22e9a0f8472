"""The tensors of one step of decoding, what its caches hold afterwards and its exact result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from budget import assert_within_budget
from torch import Tensor

from fused_attention.masks import UNBOUNDED, Band
from fused_attention.reference import attention_reference

if TYPE_CHECKING:
    from cuda.decode_case import DecodeCase

NO_PAGE = 1 << 20  # what stands in a block table where there is no page


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
