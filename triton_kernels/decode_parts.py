"""How the keys of a step of decoding are cut into parts that are worked on at once."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .launch import Config, arch_of
from .tiles import cdiv, padded_dim

# With batch_invariant, keys [512 n, 512 n + 512) are always one part.
INVARIANT_KEYS = tl.constexpr(512)
# Parts are at least this long: a shorter one costs more to combine than it saves.
LEAST_KEYS = 128
MOST_SPLITS = 128
# Programs per multiprocessor that keep the memory busy.
PROGRAMS_WANTED = 2
# Where there is no GPU to ask: an interpreter gains nothing by more parts.
MULTIPROCESSORS = 4


class Parts(NamedTuple):
    """How the rows and keys of a step are dealt out to programs."""

    config: Config
    row_tiles: int  # of the heads of a group times the queries
    splits: int
    combined: bool  # parts go to memory, and another kernel combines them


def parts_of(call: Any) -> Parts:
    """The programs of a step; the host does not know lengths and counts with the longest."""
    heads_q, heads_kv = call.query.shape[1], call.key_cache.shape[1]
    rows = heads_q // max(1, heads_kv) * call.query.shape[2]
    config = decode_config(
        rows,
        call.query.shape[-1],
        call.value_cache.shape[-1],
        call.query.element_size(),
        call.block_table is not None,
        arch_of(call.query.device),
    )
    row_tiles = cdiv(rows, config.block_q)
    splits = _splits(call, row_tiles * heads_kv * call.query.shape[0], config.block_kv)
    # One path for any number of parts, or the number would show in the last bit.
    return Parts(config, row_tiles, splits, splits > 1 or call.batch_invariant)


def _splits(call: Any, tiles: int, block_kv: int) -> int:
    capacity = call.capacity
    if call.batch_invariant:
        return max(1, cdiv(capacity, INVARIANT_KEYS.value))
    keys = min(capacity, call.left + call.right + call.query.shape[2])
    most = min(max(1, cdiv(keys, block_kv)), MOST_SPLITS)
    if call.splits > 0:
        return min(call.splits, most)
    wanted = PROGRAMS_WANTED * _multiprocessors(call.query.device) // max(1, tiles)
    return max(1, min(wanted, keys // LEAST_KEYS, most))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return MULTIPROCESSORS
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@functools.cache
def decode_config(
    rows: int, head_dim: int, value_dim: int, element_size: int, is_paged: bool, arch: str
) -> Config:
    """Tiles of a decoding kernel; `rows`: queries times the heads that share keys.

    Decoding waits for memory, whatever the chip: what counts is that enough of the cache is under
    way. Two stages of 16 KB of K and of V do that, fit into the 99 KB that a program may have on
    sm_86 and sm_120, and leave room for three programs on larger chips.
    """
    widest = max(padded_dim(head_dim), padded_dim(value_dim))
    block_kv = max(16, min(128, 16384 // (widest * element_size)))
    # Never 64 rows, whose products would be wgmma on sm_90: Triton 3.6 leaves out the fence that
    # tells them from the copies by pointer, and the rows of decoding seldom fill them. On CUDA
    # cores (fp32) each thread holds its operands whole.
    block_q = 32 if rows > 16 and element_size == 2 and widest <= 256 else 16
    warps = 4 if element_size == 2 else 8
    tile = block_kv * widest * element_size
    if arch.startswith("gfx"):
        stages = 2 if tile <= 16384 else 1  # 64 KB
    elif tile > 16384:
        stages = 2
    else:
        stages = 5 if is_paged else 3  # page numbers have to arrive before what they point to
    return Config(block_q, block_kv, warps, stages)


@triton.jit
def part_range(begin, end, split, splits, BLOCK_KV: tl.constexpr, IS_BATCH_INVARIANT: tl.constexpr):
    """Keys [begin, end) of one of the parts of the keys [begin, end); begin >= end: none.

    Parts are cut evenly, at tiles; if IS_BATCH_INVARIANT, by the position of the keys alone.
    """
    if IS_BATCH_INVARIANT:
        first = split * INVARIANT_KEYS
        size = INVARIANT_KEYS
    else:
        first_tile = begin // BLOCK_KV
        tiles = tl.maximum(tl.cdiv(end, BLOCK_KV) - first_tile, 0)
        size = tl.cdiv(tiles, splits) * BLOCK_KV
        first = first_tile * BLOCK_KV + split * size
    return tl.maximum(first, begin), tl.minimum(first + size, end)
