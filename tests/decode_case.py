"""One step of decoding for a test: its description, its caches, and its result by plain loops.

The exact result shares nothing with the package: it attends head by head to keys that were never
in a cache. The caches are made from them, contiguous or in scrambled pages, with NaN wherever no
kernel may look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from budget import assert_within_budget
from torch import Tensor

from fused_attention import Band

DRAWS = 3  # a few numbers can be right by luck: the baseline's error is that of several problems


@dataclass(frozen=True)
class DecodeCase:
    """A step of decoding without its numbers.

    Attributes:
        lengths: keys in the cache, before the new ones.
        new: keys that are stored; None: as many as queries; 0: none.
        page_size: 0 is a contiguous cache.
        cache_batch: whether the rows of a contiguous cache are permuted, with unused ones.
        starts: the first key of each sequence.
        rotary: share of head_dim that is rotated.
        layout: "contiguous" or "swapped", caches (and query) as views of [.., length, heads, dim].
    """

    name: str
    lengths: tuple[int, ...] = (5, 40)
    heads_q: int = 4
    heads_kv: int = 2
    len_q: int = 1
    new: int | None = None
    head_dim: int = 16
    value_dim: int | None = None
    dtype: torch.dtype = torch.float32
    page_size: int = 0
    spare: int = 3  # rows (or pages) of the cache that nobody uses
    cache_batch: bool = False
    starts: tuple[int, ...] | None = None
    rotary: float = 0.0
    interleaved: bool = False
    band: Band = Band.causal()  # noqa: RUF009
    scale: float | None = None
    softcap: float = 0.0
    alibi: str | None = None
    sinks: bool = False
    layout: str = "contiguous"
    magnitude: float = 1.0

    def __str__(self) -> str:
        return self.name

    def with_dtype(self, dtype: torch.dtype) -> DecodeCase:
        return replace(self, dtype=dtype)

    def make(self, seed: int = 0) -> DecodeInputs:
        return DecodeInputs(self, seed)


class DecodeInputs:
    """Tensors of one problem, its caches as they must be after the call, and its exact result."""

    def __init__(self, case: DecodeCase, seed: int) -> None:
        self.case, self.seed = case, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.new = case.len_q if case.new is None else case.new
        dim_v = case.head_dim if case.value_dim is None else case.value_dim
        batch, dims = len(case.lengths), (case.head_dim, dim_v)
        self.query = self._draw(batch, case.heads_q, case.len_q, dims[0], factor=case.magnitude)
        self.fresh = [self._draw(batch, case.heads_kv, self.new, dim) for dim in dims]
        # Keys and values of each sequence, [2][batch][Hkv, length, dim], as they are cached.
        self.cached = [[self._draw(case.heads_kv, n, d) for n in case.lengths] for d in dims]
        self.tables = self._rotary_tables() if case.rotary else None
        slopes = (batch, case.heads_q) if case.alibi == "bh" else (case.heads_q,)
        self.alibi = self._draw(*slopes).abs().float() if case.alibi else None
        self.sinks = self._draw(case.heads_q) if case.sinks else None
        self.table: Tensor | None = None
        self.rows: Tensor | None = None
        self.caches = self._caches()

    def _draw(self, *shape: int, factor: float = 1.0) -> Tensor:
        numbers = torch.randn(shape, generator=self.generator, dtype=torch.float64) * factor
        numbers = numbers.to(self.case.dtype)
        if self.case.layout == "swapped" and len(shape) == 4:
            numbers = numbers.transpose(1, 2).contiguous().transpose(1, 2)
        return numbers

    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        half = int(self.case.head_dim * self.case.rotary) // 2
        positions = max(self.case.lengths) + max(self.new, self.case.len_q)
        angle = torch.rand(positions, half, generator=self.generator, dtype=torch.float64) * 6
        wide = torch.float64 if self.case.dtype == torch.float64 else torch.float32
        return angle.cos().to(wide), angle.sin().to(wide)

    def _caches(self) -> list[Tensor]:
        """Both caches before the call: NaN but for what is cached."""
        case, batch = self.case, len(self.case.lengths)
        room = max((n + self.new for n in case.lengths), default=1)
        if case.page_size:
            pages = -(-room // case.page_size)
            order = torch.randperm(batch * pages + case.spare, generator=self.generator)
            self.table = order[: batch * pages].view(batch, pages).to(torch.int32)
            for b, n in enumerate(case.lengths):  # what is not in use may say anything
                self.table[b, -(-(n + self.new) // case.page_size) :] = -7
            shape = (batch * pages + case.spare, case.heads_kv, case.page_size)
        else:
            shape = (batch + case.spare, case.heads_kv, room + case.spare)
            if case.cache_batch:
                order = torch.randperm(batch + case.spare, generator=self.generator)
                self.rows = order[:batch].to(torch.int32)
        caches = []
        for cached, fresh in zip(self.cached, self.fresh, strict=True):
            cache = self._draw(*shape, fresh.shape[-1])
            cache.fill_(torch.nan)
            for b, kept in enumerate(cached):
                first = case.starts[b] if case.starts else 0
                for n in range(first, kept.shape[1]):
                    self.slot(cache, b, n).copy_(kept[:, n])
            caches.append(cache)
        return caches

    def slot(self, cache: Tensor, b: int, n: int) -> Tensor:
        """Where key n of sequence b is stored, [Hkv, dim]."""
        if self.table is not None:
            size = self.case.page_size
            return cache[self.table[b, n // size], :, n % size]
        return cache[b if self.rows is None else int(self.rows[b]), :, n]

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of attention_with_kv_cache, caches and query aside."""
        case = self.case
        return {
            "key": self.fresh[0] if self.new else None,
            "value": self.fresh[1] if self.new else None,
            "cache_lengths": torch.tensor(case.lengths, dtype=torch.int32),
            "cache_batch": self.rows,
            "cache_starts": torch.tensor(case.starts) if case.starts else None,
            "block_table": self.table,
            "rotary_cos": self.tables[0] if self.tables else None,
            "rotary_sin": self.tables[1] if self.tables else None,
            "rotary_interleaved": case.interleaved,
            "band": case.band,
            "scale": case.scale,
            "softcap": case.softcap,
            "alibi_slopes": self.alibi,
            "sinks": self.sinks,
        }

    def attended(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """out and lse, every step in `dtype` but for what is stored."""
        case = self.case
        batch, heads, len_q, _ = self.query.shape
        out = torch.zeros(batch, heads, len_q, self.fresh[1].shape[-1], dtype=dtype)
        lse = torch.full((batch, heads, len_q), -math.inf, dtype=dtype)
        for b, cached in enumerate(case.lengths):
            stored = turned(self.fresh[0][b].double(), self.tables, cached, case.interleaved)
            key = torch.cat((self.cached[0][b], stored.to(case.dtype)), 1).to(dtype)
            value = torch.cat((self.cached[1][b], self.fresh[1][b]), 1).to(dtype)
            query = turned(self.query[b].to(dtype), self.tables, cached, case.interleaved)
            for h in range(heads):
                h_kv = h // (heads // case.heads_kv)
                for i in range(len_q):
                    seen = self._visible(b, i, key.shape[1])
                    k, v = key[h_kv, seen], value[h_kv, seen]
                    found = self._row(b, h, i, query[h, i], k, v, seen, key.shape[1])
                    out[b, h, i], lse[b, h, i] = found
        return out, lse

    def _visible(self, b: int, i: int, total: int) -> list[int]:
        case = self.case
        diagonal = total - case.len_q + i
        first = max(case.starts[b] if case.starts else 0, diagonal - case.band.left)
        return list(range(max(first, 0), min(total, diagonal + case.band.right + 1)))

    def _row(
        self,
        b: int,
        h: int,
        i: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        seen: list[int],
        total: int,
    ) -> tuple[Tensor, Tensor]:
        case, dtype = self.case, query.dtype
        scale = query.shape[-1] ** -0.5 if case.scale is None else case.scale
        scores = key @ query * scale
        if case.softcap:
            scores = case.softcap * (scores / case.softcap).tanh()
        if self.alibi is not None:
            slope = (self.alibi[b] if self.alibi.dim() == 2 else self.alibi)[h].double()
            distance = (total - case.len_q + i - torch.tensor(seen)).abs()
            scores = scores - (slope * distance).to(dtype)
        if self.sinks is not None:
            scores = torch.cat((scores, self.sinks[h : h + 1].to(dtype)))
            value = torch.cat((value, value.new_zeros(1, value.shape[-1])))
        if not len(scores):
            return torch.zeros(value.shape[-1], dtype=dtype), torch.tensor(-math.inf, dtype=dtype)
        return scores.softmax(0) @ value, scores.logsumexp(0)

    def check(self, out: Tensor, lse: Tensor, caches: list[Tensor]) -> None:
        """out within its error budget, lse within 1e-4, and the caches as they must be."""
        case = self.case
        assert out.dtype == case.dtype, out.dtype
        wide = case.dtype == torch.float64
        low = torch.float32 if wide else case.dtype
        draws = [self] + [case.make(self.seed + 100 + n) for n in range(DRAWS - 1)]
        judged = [(one.attended(torch.float64), one.attended(low)) for one in draws]
        (exact, exact_lse), _ = judged[0]
        outs = [(a[0], b[0]) for a, b in judged]
        assert_within_budget(out, *outs[0], more_draws=outs[1:], name=f"{case}: out")
        assert lse.dtype == (torch.float64 if wide else torch.float32), lse.dtype
        alive = exact_lse > -math.inf
        assert torch.equal(alive, lse > -math.inf), f"{case}: dead rows of lse"
        error = ((lse.double() - exact_lse) / exact_lse.abs().clamp(min=1))[alive].abs()
        assert (error < (1e-12 if wide else 1e-4)).all(), f"{case}: lse off by {error.max()}"
        self._check_caches(caches)

    def _check_caches(self, caches: list[Tensor]) -> None:
        """New keys (turned) and values lie where they belong, and nothing else has changed."""
        case = self.case
        for n, (before, after) in enumerate(zip(self.caches, caches, strict=True)):
            expected = before.clone()
            for b, cached in enumerate(case.lengths):
                fresh = self.fresh[n][b]
                if n == 0:
                    fresh = turned(fresh.double(), self.tables, cached, case.interleaved)
                for i in range(self.new):
                    self.slot(expected, b, cached + i).copy_(fresh[:, i])
            ulp = 0.0 if n or not self.tables else 2 * torch.finfo(case.dtype).eps
            torch.testing.assert_close(after, expected, rtol=ulp, atol=ulp, equal_nan=True)


def turned(
    x: Tensor, tables: tuple[Tensor, Tensor] | None, first: int, interleaved: bool
) -> Tensor:
    """[H, L, D] with row i rotated by position first + i, pair by pair."""
    if tables is None:
        return x
    out, half = x.clone(), tables[0].shape[1]
    cos, sin = (table[first : first + x.shape[1]].to(x.dtype) for table in tables)
    for n in range(half):
        a, b = (2 * n, 2 * n + 1) if interleaved else (n, n + half)
        out[..., a] = x[..., a] * cos[:, n] - x[..., b] * sin[:, n]
        out[..., b] = x[..., a] * sin[:, n] + x[..., b] * cos[:, n]
    return out
