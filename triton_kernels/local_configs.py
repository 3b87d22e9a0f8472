"""Tile shapes of local attention's kernels.

A block of BLOCK_Q queries looks at the union of its windows, BLOCK_Q + 2 D keys where positions go
with the queries: with small windows large blocks look mostly at masks. Dims and values of any width
come in steps, and programs of their own for the columns of a result beyond the first step.
"""

from __future__ import annotations

import torch

from .configs import SMALL_WINDOW, Tiles, at_most_registers, by_pointers
from .launch import INTERPRETER, Config
from .tiles import padded_dim


def forward_tiles(
    len_q: int, head_dim: int, value_dim: int, dtype: torch.dtype, arch: str, window: float
) -> Tiles:
    """Queries and their sums of VALUE_BLOCK columns stay; keys and values pass.

    window: keys that a query sees at most.
    """
    dim, wide = padded_dim(head_dim), padded_dim(value_dim)
    if arch == INTERPRETER:
        return Tiles(Config(32, 32, 4, 1), min(dim, 64), min(wide, 64))
    if dtype == torch.float32:
        # Products on CUDA cores hold whole operands in registers.
        return Tiles(Config(16, 32, 4, 1), min(dim, 64), min(wide, 128))
    aligned = _aligned(head_dim, value_dim)
    config = _few_rows(len_q, 8 if max(dim, wide) > 256 or not aligned else 4, 2)
    if window > SMALL_WINDOW and len_q > 32:
        config = config._replace(block_q=64, block_kv=64)
    most = 128 if aligned else 64
    return Tiles(by_pointers(config, arch), min(dim, most), min(wide, most))


def backward_tiles(
    len_q: int, head_dim: int, value_dim: int, dtype: torch.dtype, arch: str
) -> Tiles:
    """Both passes: they share the blocks of queries, whose windows the first one writes."""
    dim, wide = padded_dim(head_dim), padded_dim(value_dim)
    if arch == INTERPRETER:
        return Tiles(Config(32, 32, 4, 1), min(dim, 64), min(wide, 64))
    few = max(dim, wide) <= 256 and _aligned(head_dim, value_dim)
    if dtype == torch.float32:
        return Tiles(Config(16, 32, 4 if few else 8, 1), min(dim, 64), min(wide, 64))
    config = _few_rows(len_q, 4 if few else 8, 1)
    if few:
        # Three programs on a multiprocessor; the compiler tries four, and spills.
        config = config._replace(extra=at_most_registers(168, arch))
    return Tiles(config, min(dim, 64), min(wide, 64))


def _few_rows(len_q: int, warps: int, stages: int) -> Config:
    return Config(32 if len_q > 16 else 16, 32, warps, stages)


def _aligned(*dims: int) -> bool:
    """Whether rows come 16 bytes at a time; else each element takes a pointer of its own."""
    return all(dim % 16 == 0 for dim in dims)
