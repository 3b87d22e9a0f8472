"""A key-value cache kept as Python lists of tokens: what the cached functions are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from compat.helpers import normal
from compat.plain_attention import plain_attention, plain_rotation
from torch import Tensor


@dataclass
class CachedCase:
    """One call of flash_attn_with_kvcache, as sequences; NaN stands where nothing may look.

    Attributes:
        lengths: tokens cached per sequence, the left padding among them.
        leftpad: tokens at the beginning of each row that do not count.
        new: tokens appended to each sequence; all the same unless packed.
        len_q: queries of each sequence.
        rows: the row of the cache that each sequence uses, of `n_rows`.
        page_size: tokens of a page; None is a plain cache of `capacity` tokens per row.
        rotary: (rotary_dim, interleaved).
        first: position of each first new token; default the cached length.
    """

    lengths: tuple[int, ...] = (3, 7)
    leftpad: tuple[int, ...] | None = None
    new: tuple[int, ...] | None = None
    len_q: tuple[int, ...] = (3, 3)
    rows: tuple[int, ...] | None = None
    n_rows: int = 2
    capacity: int = 12
    page_size: int | None = None
    rotary: tuple[int, bool] | None = None
    first: tuple[int, ...] | None = None
    heads: int = 4
    heads_k: int = 2
    dim: int = 8
    dim_v: int = 8

    def __post_init__(self) -> None:
        batch = len(self.lengths)
        self.q = [normal(n, self.heads, self.dim, seed=b) for b, n in enumerate(self.len_q)]
        self.k_rows = [self._row(b, self.dim, 10 + b) for b in range(batch)]
        self.v_rows = [self._row(b, self.dim_v, 20 + b) for b in range(batch)]
        new = self.new or (0,) * batch
        self.k_new = [normal(n, self.heads_k, self.dim, seed=30 + b) for b, n in enumerate(new)]
        self.v_new = [normal(n, self.heads_k, self.dim_v, seed=40 + b) for b, n in enumerate(new)]
        half = self.rotary[0] // 2 if self.rotary else 0
        angle = normal(2 * self.capacity, half, seed=50)
        self.cos, self.sin = angle.cos(), angle.sin()

    def _row(self, b: int, dim: int, seed: int) -> Tensor:
        row = normal(self.lengths[b], self.heads_k, dim, seed=seed)
        if self.leftpad is not None:
            row[: self.leftpad[b]] = torch.nan
        return row

    def caches(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """k_cache, v_cache and, if paged, the table [n_rows, pages of a row]."""
        rows = self.rows or range(len(self.lengths))
        k = torch.full((self.n_rows, self.capacity, self.heads_k, self.dim), torch.nan).double()
        v = torch.full((self.n_rows, self.capacity, self.heads_k, self.dim_v), torch.nan).double()
        for row, k_row, v_row in zip(rows, self.k_rows, self.v_rows, strict=True):
            k[row, : len(k_row)], v[row, : len(v_row)] = k_row, v_row
        if self.page_size is None:
            return k, v, None
        columns = self.capacity // self.page_size
        order = torch.randperm(
            self.n_rows * columns + 2, generator=torch.Generator().manual_seed(0)
        )
        table = order[: self.n_rows * columns].view(self.n_rows, columns).int()
        pages = []
        for cache in (k, v):
            paged = cache.new_full((len(order), self.page_size, *cache.shape[2:]), torch.nan)
            paged[table.flatten().long()] = cache.view(-1, *paged.shape[1:])
            pages.append(paged)
        return pages[0], pages[1], table

    def unpaged(self, cache: Tensor, table: Tensor | None) -> Tensor:
        return cache if table is None else cache[table.long()].flatten(1, 2)

    def grown(self) -> tuple[list[Tensor], list[Tensor]]:
        """Each sequence's tokens after the new ones are appended, keys turned."""
        k_new = [self._turned(k, b, together=False) for b, k in enumerate(self.k_new)]
        return (
            [torch.cat(pair) for pair in zip(self.k_rows, k_new, strict=True)],
            [torch.cat(pair) for pair in zip(self.v_rows, self.v_new, strict=True)],
        )

    def _turned(self, x: Tensor, b: int, together: bool) -> Tensor:
        if self.rotary is None:
            return x
        first = (self.first or self.lengths)[b]
        position = [first if together else first + n for n in range(len(x))]
        return plain_rotation(x, self.cos[position], self.sin[position], self.rotary[1])

    def expected(
        self, slopes: Tensor | None = None, **plain: object
    ) -> tuple[list[Tensor], list[Tensor]]:
        """out [len_q, heads, dim_v] and lse [heads, len_q] of each sequence."""
        local = plain.get("causal") or plain.get("window", (-1, -1)) != (-1, -1)
        outs, lses = [], []
        for b, (k, v) in enumerate(zip(*self.grown(), strict=True)):
            begin = 0 if self.leftpad is None else self.leftpad[b]
            q = self._turned(self.q[b], b, together=not local and not plain.get("chunk"))
            own = slopes[b] if slopes is not None and slopes.dim() == 2 else slopes
            out, lse = plain_attention(q, k[begin:], v[begin:], slopes=own, **plain)
            outs.append(out)
            lses.append(lse)
        return outs, lses
