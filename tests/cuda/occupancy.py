"""How many thread blocks of a kernel run on one multiprocessor at a time.

Limits and the units in which registers and shared memory are handed out: CUDA C++ Programming
Guide, "Technical specifications per compute capability".
"""

from __future__ import annotations

from typing import NamedTuple

WARP = 32
REGISTER_UNIT = 256  # registers are handed out to warps in multiples of this
SHARED_UNIT = 128
RESERVED_SHARED = 1024  # of each block, by the system


class Multiprocessor(NamedTuple):
    """What the blocks on it share."""

    warps: int
    blocks: int
    shared: int  # bytes
    shared_per_block: int
    registers: int = 65536


MULTIPROCESSORS = {
    "80": Multiprocessor(64, 32, 164 * 1024, 163 * 1024),
    "86": Multiprocessor(48, 16, 100 * 1024, 99 * 1024),
    "90": Multiprocessor(64, 32, 228 * 1024, 227 * 1024),
}


def blocks_per_multiprocessor(arch: str, registers: int, threads: int, shared: int) -> int:
    """The most blocks at a time; 0: the kernel cannot be launched.

    Args:
        registers: of a thread.
        shared: bytes of a block, static and dynamic together.
    """
    limits = MULTIPROCESSORS[arch]
    if shared > limits.shared_per_block:
        return 0
    warps = -(-threads // WARP)
    of_a_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    # Warps live in four quarters, each with a quarter of the registers.
    by_registers = limits.registers // 4 // of_a_warp * 4 // warps
    of_a_block = -(-(shared + RESERVED_SHARED) // SHARED_UNIT) * SHARED_UNIT
    return min(limits.warps // warps, limits.blocks, by_registers, limits.shared // of_a_block)
