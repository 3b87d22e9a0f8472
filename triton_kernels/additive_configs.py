"""Tile shapes of additive attention's kernels, the same on every chip.

A tile of scores is [queries, keys, dims], a tanh for each; a sum for each stays in a register until
the last dim. What a thread holds of queries, keys and sums has to leave room for the context.
"""

from __future__ import annotations

import torch

from .configs import Tiles, at_most_registers, by_pointers, shared_bytes
from .launch import INTERPRETER, Config
from .tiles import padded_dim

ROWS = 16  # the least that a product takes
FEW = 4  # queries that have a tile of their own


def native_tanh(dtype: torch.dtype, arch: str) -> bool:
    """Whether tanh is one instruction, and a good enough one: fp32 has more than its 11 bits."""
    return dtype != torch.float32 and arch.startswith("sm_")


def forward_tiles(len_q: int, value_dim: int, dtype: torch.dtype, arch: str) -> Tiles:
    """A block of queries and its sums of VALUE_BLOCK columns stay; keys and values pass."""
    wide = padded_dim(value_dim)
    if arch == INTERPRETER:
        return Tiles(Config(_tile_rows(len_q), 32, 4, 1), 32, min(wide, 256))
    if len_q == 1:
        # A decoder's step: memory is what it waits for. Lanes lie along the dims.
        return Tiles(Config(1, 16, 4, 1), 64, min(wide, 512))
    if len_q <= FEW:
        return Tiles(Config(FEW, 16, 4, 1), 32, min(wide, 512))
    if dtype == torch.float32:
        # Products on CUDA cores hold whole operands in registers.
        return Tiles(Config(ROWS, 16, 8, 1), 16, min(wide, 512))
    if wide > 512 and shared_bytes(arch) > 64 * 1024:
        return Tiles(Config(ROWS, 32, 8, 1), 16, 1024)
    # 128 registers: two programs share a multiprocessor, one computes while the other waits.
    return Tiles(Config(ROWS, 32, 8, 1, extra=at_most_registers(128, arch)), 16, min(wide, 512))


def backward_tiles(len_q: int, value_dim: int, arch: str) -> Tiles:
    """P and dS of a tile."""
    value_block = min(padded_dim(value_dim), 64)
    if arch == INTERPRETER or len_q <= FEW:
        return Tiles(Config(_tile_rows(len_q), 32, 4, 1), 32, value_block)
    return Tiles(Config(ROWS, 32, 8, 1), 16, value_block)


def rows_tiles(len_own: int, len_other: int, arch: str) -> Tiles:
    """dq or dk: block_q rows of one side and block_kv of the other at a time."""
    own, other = (min(ROWS, 1 << (max(1, n) - 1).bit_length()) for n in (len_own, len_other))
    return Tiles(Config(own, other, 4, 1), 32 if arch == INTERPRETER else 16, 0)


def value_tiles(value_dim: int, dtype: torch.dtype, arch: str) -> Tiles:
    """dV: block_kv rows and value_block columns stay; P and dO pass."""
    wide = padded_dim(value_dim)
    if arch == INTERPRETER or dtype == torch.float32:
        return Tiles(Config(ROWS, 32, 4, 1), 0, min(wide, 64))
    return Tiles(by_pointers(Config(32, 64, 4, 2), arch), 0, min(wide, 128))


def _tile_rows(len_q: int) -> int:
    return 1 if len_q == 1 else FEW if len_q <= FEW else ROWS
