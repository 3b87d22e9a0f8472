"""New keys, rotated, and new values go to their places in the caches."""

from __future__ import annotations

import triton
import triton.language as tl

from .decode_arguments import SIZES
from .decode_cache import cache_row, key_places
from .rotary import load_rotated
from .tiles import operand_base


@triton.jit(do_not_specialize=SIZES)
def append_kernel(
    key,
    value,
    key_cache,
    value_cache,
    cache_lengths,
    cache_batch,
    block_table,
    rotary_cos,
    rotary_sin,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    key_cache_batch,
    key_cache_head,
    key_cache_row,
    value_cache_batch,
    value_cache_head,
    value_cache_row,
    heads_kv,
    len_new,
    capacity,
    page_size,
    pages,
    rotary_half,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    BLOCK_NEW: tl.constexpr,
    IS_PAGED: tl.constexpr,
    HAS_CACHE_BATCH: tl.constexpr,
    HAS_ROTARY: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
):
    """A program for BLOCK_NEW new rows of a key head; a row beyond what fits is dropped."""
    blocks = tl.cdiv(len_new, BLOCK_NEW)
    item = tl.program_id(0)
    new = item % blocks * BLOCK_NEW + tl.arange(0, BLOCK_NEW)
    head = item // blocks % heads_kv
    b = item // blocks // heads_kv

    keys = tl.load(cache_lengths + b) + new
    exists = (new < len_new) & (keys >= 0) & (keys < capacity)
    row = cache_row(cache_batch, b, HAS_CACHE_BATCH)
    page, place = key_places(block_table, row, b, keys, exists, page_size, pages, IS_PAGED)

    columns = tl.arange(0, DIM_BLOCK)
    there = exists[:, None] & (columns < DIM)[None, :]
    source = operand_base(key, b, head, new, key_batch, key_head, key_row)
    target = operand_base(
        *(key_cache, page, head, place, key_cache_batch, key_cache_head, key_cache_row)
    )
    if HAS_ROTARY:
        K = load_rotated(
            *(source, exists, keys, columns, rotary_cos, rotary_sin, rotary_half),
            DIM,
            IS_INTERLEAVED,
        )
    else:
        K = tl.load(source[:, None] + columns[None, :], mask=there)
    tl.store(target[:, None] + columns[None, :], K.to(key_cache.dtype.element_ty), mask=there)

    columns = tl.arange(0, VALUE_BLOCK)
    there = exists[:, None] & (columns < VALUE_DIM)[None, :]
    source = operand_base(value, b, head, new, value_batch, value_head, value_row)
    target = operand_base(
        *(value_cache, page, head, place, value_cache_batch, value_cache_head, value_cache_row)
    )
    V = tl.load(source[:, None] + columns[None, :], mask=there)
    tl.store(target[:, None] + columns[None, :], V, mask=there)
