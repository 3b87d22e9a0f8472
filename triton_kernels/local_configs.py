"""Tile shapes of local attention's kernels.

A block of BLOCK_Q queries looks at the union of its windows, BLOCK_Q + 2 D keys where positions go
with the queries: with small windows large blocks look mostly at masks. Dims and values of any width
come in steps, and programs of their own for the columns of a result beyond the first step.
"""

from __future__ import annotations

import torch

from .configs import SMALL_WINDOW, Tiles, by_pointers
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
    most = 256 if _aligned(head_dim, value_dim) else 128
    if window > SMALL_WINDOW and len_q > 32:
        config = Config(64, 64, 4 if min(wide, most) <= 128 else 8, 2)
    else:
        config = Config(32 if len_q > 16 else 16, 32, 4 if max(dim, wide) <= 256 else 8, 2)
    return Tiles(by_pointers(config, arch), min(dim, 128), min(wide, most))


def backward_tiles(
    len_q: int, head_dim: int, value_dim: int, dtype: torch.dtype, arch: str
) -> Tiles:
    """Both passes: they share the blocks of queries, whose windows the first one writes."""
    dim, wide = padded_dim(head_dim), padded_dim(value_dim)
    if arch == INTERPRETER:
        return Tiles(Config(32, 32, 4, 1), min(dim, 64), min(wide, 64))
    warps = 4 if max(dim, wide) <= 256 and _aligned(head_dim, value_dim) else 8
    if dtype == torch.float32:
        return Tiles(Config(16, 32, warps, 1), min(dim, 64), min(wide, 64))
    most = 128 if _aligned(head_dim, value_dim) else 64
    config = Config(32 if len_q > 16 else 16, 32, warps, 1)
    return Tiles(config, min(dim, most), min(wide, most))


def _aligned(*dims: int) -> bool:
    """Whether rows come 16 bytes at a time; else each element takes a pointer of its own."""
    return all(dim % 16 == 0 for dim in dims)
