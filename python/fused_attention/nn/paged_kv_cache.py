"""A KV cache in pages: rows of different lengths take only the room that they need."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from fused_attention import log
from fused_attention.decode_problem import PREFILL
from fused_attention.decoding import attention_with_kv_cache
from fused_attention.masks import Band
from fused_attention.nn.kv_cache import check_new, prefill


class PagedKVCache:
    """Keys and values of one attention layer in pages (Kwon et al. 2023), called as KVCache.

    A row takes a page when its last one is full and gives it back when it is cropped. Rows that
    `reorder` makes equal share their pages until one of them stores a token in a shared page.

    Attributes:
        key: [pages, heads, page_size, head_dim].
        value: the same shape.
        length: number of tokens that its longest row holds.
        lengths: int32 [batch], the tokens of each row; None if all hold `length`.
        block_table: int32 [batch, pages of a row], the pages of each row in order.

    Args:
        max_length: tokens that a row may hold.
        page_size: tokens of a page.
        pages: of all rows together; default what all need at `max_length`.

    Raises:
        ValueError: max_length, page_size or pages is below 1.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        max_length: int,
        head_dim: int,
        *,
        page_size: int = 64,
        pages: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        each = -(-max_length // page_size) if page_size > 0 else 0
        pages = batch * each if pages is None else pages
        for name, number in (("max_length", max_length), ("page_size", page_size)):
            if number < 1:
                raise ValueError(f"{name}: must be at least 1, got {number}")
        if pages < 1:
            raise ValueError(f"pages: must be at least 1, got {pages}")
        shape = (pages, heads, page_size, head_dim)
        self.key = torch.empty(shape, dtype=dtype, device=device)
        self.value = torch.empty(shape, dtype=dtype, device=device)
        self.block_table = torch.zeros((batch, each), dtype=torch.int32, device=device)
        self.max_length, self.length = max_length, 0
        self.lengths: Tensor | None = None
        self._rows: list[list[int]] = [[] for _ in range(batch)]
        self._held = [0] * batch  # the tokens of each row, known without asking the device
        self._free = list(range(pages - 1, -1, -1))
        self._users = [0] * pages

    @property
    def page_size(self) -> int:
        return self.key.shape[2]

    @property
    def pages_in_use(self) -> int:
        return len(self._users) - len(self._free)

    def positions(self, new: int) -> Tensor:
        """The positions of the next `new` tokens: [new], or [batch, new] if the rows differ."""
        steps = torch.arange(new, device=self.key.device)
        return steps + (self.length if self.lengths is None else self.lengths[:, None])

    def append(
        self, key: Tensor, value: Tensor, new_lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Store the next tokens; as KVCache.append, but what it returns are copies."""
        self._store(key, value, new_lengths)
        return self._gather(self.key), self._gather(self.value)

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
        """Store the next tokens and attend to all that the cache then holds, as KVCache.attend."""
        options: dict[str, Any] = {"scale": scale, "alibi_slopes": alibi_slopes}
        if query.shape[2] >= PREFILL or new_lengths is not None:
            return prefill(self, query, key, value, band, new_lengths, options)
        new = key.shape[2]
        self._check(key, value)
        self._reserve([new] * len(self._rows))
        options |= {
            "key": key,
            "value": value,
            "cache_lengths": self.length if self.lengths is None else self.lengths,
            "block_table": self.block_table,
            "band": band,
        }
        if log.enabled:
            log.decoded("nn.PagedKVCache", query, self.key, self.value, **options)
        out: Tensor = attention_with_kv_cache(query, self.key, self.value, **options)
        self._grow([new] * len(self._rows))
        return out

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens of each row; `crop(0)` empties the cache.

        Raises:
            ValueError: length is not in [0, self.length].
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length: must be in [0, {self.length}], got {length}")
        for row, pages in enumerate(self._rows):
            self._held[row] = min(self._held[row], length)
            kept = -(-self._held[row] // self.page_size)
            self._release(pages[kept:])
            del pages[kept:]
        self._count()

    def reorder(self, rows: Tensor) -> None:
        """Batch row n becomes what row rows[n] is, sharing its pages.

        Args:
            rows: int64 [batch].
        """
        order = rows.tolist()
        before = self._rows
        self._rows = [list(before[row]) for row in order]
        self._held = [self._held[row] for row in order]
        for pages in self._rows:
            for page in pages:
                self._users[page] += 1
        for pages in before:
            self._release(pages)
        self.block_table = self.block_table.index_select(0, rows)
        self._count()

    def _store(self, key: Tensor, value: Tensor, new_lengths: Tensor | None) -> None:
        self._check(key, value)
        batch, new, device = len(self._rows), key.shape[2], self.key.device
        counts = [new] * batch if new_lengths is None else new_lengths.tolist()
        starts = torch.tensor(self._held, device=device)[:, None]
        self._reserve(counts)
        steps = torch.arange(new, device=device)
        row, step = (steps < torch.tensor(counts, device=device)[:, None]).nonzero(as_tuple=True)
        place = (starts + steps)[row, step]
        page = self.block_table[row, place // self.page_size]
        self.key[page, :, place % self.page_size] = key[row, :, step]
        self.value[page, :, place % self.page_size] = value[row, :, step]
        self._grow(counts)

    def _gather(self, pages: Tensor) -> Tensor:
        """[batch, heads, length, head_dim] of the pages in use."""
        count = -(-self.length // self.page_size)
        rows = pages[self.block_table[:, :count]]  # [batch, count, heads, page_size, head_dim]
        return rows.transpose(1, 2).flatten(2, 3)[:, :, : self.length]

    def _reserve(self, counts: list[int]) -> None:
        """Give each row pages of its own for its next tokens.

        Raises:
            ValueError: there are not enough; nothing was taken.
        """
        ends = [held + count for held, count in zip(self._held, counts, strict=True)]
        if max(ends, default=0) > self.max_length:
            raise ValueError(f"cache: has room for {self.max_length} tokens, got {max(ends)}")
        numbers = [-(-end // self.page_size) for end in ends]
        wanted = sum(
            max(0, number - len(pages)) for number, pages in zip(numbers, self._rows, strict=True)
        )
        last = [self._last_page(row, count) for row, count in enumerate(counts)]
        # The last user of a shared page may keep it.
        writers = Counter(page for page in last if page is not None)
        wanted += sum(min(count, self._users[page] - 1) for page, count in writers.items())
        if wanted > len(self._free):
            rule = f"must be {wanted - len(self._free)} more for these tokens"
            raise ValueError(f"pages: {rule}, got {len(self._users)}")
        for row, page in enumerate(last):
            if page is not None and self._users[page] > 1:
                self._own_last_page(row, page)
            for _ in range(numbers[row] - len(self._rows[row])):
                self._take(row)

    def _last_page(self, row: int, count: int) -> int | None:
        """The page in use in which the first of `count` more tokens would be stored."""
        pages, number = self._rows[row], self._held[row] // self.page_size
        return pages[number] if count and number < len(pages) else None

    def _own_last_page(self, row: int, page: int) -> None:
        """Give the row a copy of a page that others use too."""
        self._release([self._rows[row].pop()])
        self._take(row)
        copy = self._rows[row][-1]
        self.key[copy], self.value[copy] = self.key[page], self.value[page]

    def _take(self, row: int) -> None:
        """Give the row one more page."""
        page = self._free.pop()
        self._users[page] = 1
        self.block_table[row, len(self._rows[row])] = page
        self._rows[row].append(page)

    def _release(self, pages: list[int]) -> None:
        for page in pages:
            self._users[page] -= 1
            if self._users[page] == 0:
                self._free.append(page)

    def _grow(self, counts: list[int]) -> None:
        self._held = [held + count for held, count in zip(self._held, counts, strict=True)]
        self._count()

    def _count(self) -> None:
        self.length = max(self._held, default=0)
        if min(self._held, default=0) == self.length:
            self.lengths = None
        else:
            self.lengths = torch.tensor(self._held, dtype=torch.int32, device=self.key.device)

    def _check(self, key: Tensor, value: Tensor) -> None:
        _, heads, _, head_dim = self.key.shape
        check_new(key, value, (len(self._rows), heads, head_dim))
        if key.dtype != self.key.dtype:
            raise ValueError(f"cache: holds {self.key.dtype}, got {key.dtype}")

    def __repr__(self) -> str:
        pages, heads, size, head_dim = self.key.shape
        return (
            f"PagedKVCache(batch={len(self._rows)}, heads={heads}, length={self.length} of "
            f"{self.max_length}, pages={self.pages_in_use} of {pages} of {size} tokens, "
            f"head_dim={head_dim}, {self.key.dtype}, {self.key.device})"
        )
