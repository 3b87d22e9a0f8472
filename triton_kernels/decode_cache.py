"""Where the keys and values of a sequence lie in a cache, contiguous or in pages."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cache_length(cache_lengths, b, len_new, capacity):
    """Keys of sequence b after the new ones were stored, never more than fit."""
    length = tl.load(cache_lengths + b).to(tl.int64) + len_new
    return tl.minimum(tl.maximum(length, 0), capacity).to(tl.int32)


@triton.jit
def cache_row(cache_batch, b, HAS_CACHE_BATCH: tl.constexpr):
    """The row of a contiguous cache that sequence b uses."""
    if HAS_CACHE_BATCH:
        return tl.load(cache_batch + b)
    else:
        return b


@triton.jit
def key_places(block_table, row, b, keys, exists, page_size, pages, IS_PAGED: tl.constexpr):
    """(row of the cache or page, row inside of it) of keys at positions [keys] of sequence b.

    row: of `cache_row`; pages: columns of the block table. The pages of keys that do not exist are
    not looked at.
    """
    if IS_PAGED:
        numbers = block_table + tl.cast(b, tl.int64) * pages + keys // page_size
        return tl.load(numbers, mask=exists, other=0), keys % page_size
    else:
        return row, keys


@triton.jit
def load_cached(base, exists, columns, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr):
    """Rows of a cache, 0 where they do not exist and behind DIM; base: pointers [rows]."""
    there = exists[:, None]
    if DIM != DIM_BLOCK:
        there = there & (columns < DIM)[None, :]
    return tl.load(base[:, None] + columns[None, :], mask=there, other=0.0)
