"""Which element of a tile a lane's register holds, for mma, wgmma and ldmatrix.

From the PTX manual's tables: group = lane / 4, member = lane % 4. Every function gives the row and
the column of all elements in the order [register][half of it][lane].
"""

from __future__ import annotations

import functools

import numpy as np

from .registers import LANE, LANES

GROUP, MEMBER = LANE // 4, LANE % 4


@functools.cache
def a_16(k: int) -> np.ndarray:
    """A of m16n8k8 and m16n8k16, 16-bit elements: flat index row * k + column, [regs, 2, 32]."""
    out = np.empty((k // 4, 2, LANES), np.int64)
    for register in range(k // 4):
        for half in (0, 1):
            row = GROUP + 8 * (register % 2)
            column = MEMBER * 2 + half + 8 * (register // 2)
            out[register, half] = row * k + column
    return out


@functools.cache
def b_16(k: int) -> np.ndarray:
    """B, 16-bit elements: flat index row * 8 + column, [registers, 2, 32]."""
    out = np.empty((k // 8, 2, LANES), np.int64)
    for register in range(k // 8):
        for half in (0, 1):
            out[register, half] = (MEMBER * 2 + half + 8 * register) * 8 + GROUP
    return out


@functools.cache
def a_32(k: int) -> np.ndarray:
    """A of m16n8k4 and m16n8k8 for 32-bit elements, [registers, 1, 32]."""
    out = np.empty((k // 2, 1, LANES), np.int64)
    for register in range(k // 2):
        out[register, 0] = (GROUP + 8 * (register % 2)) * k + MEMBER + 4 * (register // 2)
    return out


@functools.cache
def b_32(k: int) -> np.ndarray:
    out = np.empty((k // 4, 1, LANES), np.int64)
    for register in range(k // 4):
        out[register, 0] = (MEMBER + 4 * register) * 8 + GROUP
    return out


@functools.cache
def c_32(columns: int) -> np.ndarray:
    """An accumulator of 16 rows in float32, [registers, 1, 32]; columns is 8 for mma."""
    out = np.empty((columns // 2, 1, LANES), np.int64)
    for register in range(columns // 2):
        row = GROUP + 8 * (register // 2 % 2)
        out[register, 0] = row * columns + MEMBER * 2 + register % 2 + 8 * (register // 4)
    return out


@functools.cache
def c_16(columns: int) -> np.ndarray:
    """An accumulator of 16 rows in float16 pairs, [registers, 2, 32]."""
    out = np.empty((columns // 4, 2, LANES), np.int64)
    for register in range(columns // 4):
        for half in (0, 1):
            row = GROUP + 8 * (register % 2)
            out[register, half] = row * columns + MEMBER * 2 + half + 8 * (register // 2)
    return out


@functools.cache
def inverse(layout: str, size: int) -> np.ndarray:
    """For every element of the tile, its place in [register][lane][half], as memory has it."""
    table = {"a_16": a_16, "b_16": b_16, "a_32": a_32, "b_32": b_32, "c_32": c_32, "c_16": c_16}
    places = table[layout](size).transpose(0, 2, 1).reshape(-1)
    out = np.empty_like(places)
    out[places] = np.arange(len(places))
    return out
