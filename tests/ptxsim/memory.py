"""Memory spaces: bytes, bounds and initialisation; who may see them when is in checks.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import AccessError

GLOBAL_BASE = 1 << 33
PARAM_BASE = 1 << 41
SHARED_BASE = 1 << 42
LOCAL_BASE = 1 << 43
_RED_ZONE = 1024


class GlobalMemory:
    """Device memory: buffers between red zones in one array of bytes.

    `put` copies an array in and returns its address, which may stand in a kernel's structs; `get`
    copies it out again.
    """

    def __init__(self, capacity: int = 1 << 22) -> None:
        self.bytes = np.zeros(capacity, np.uint8)
        self.valid = np.zeros(capacity, np.bool_)
        self.unwritten: list[tuple[int, int]] = []
        self.buffers: dict[int, tuple[tuple[int, ...], np.dtype]] = {}
        self.top = _RED_ZONE

    def put(self, array: Any, *, initialised: bool = True, align: int = 256) -> int:
        """Copies an array in; with initialised=False reading it before writing is an error."""
        array = np.ascontiguousarray(array)
        start = -(-self.top // align) * align
        self.top = start + array.nbytes + _RED_ZONE
        if self.top > self.bytes.size:
            grow = max(-(-self.top // 1024) * 1024, 2 * self.bytes.size) - self.bytes.size
            self.bytes = np.concatenate([self.bytes, np.zeros(grow, np.uint8)])
            self.valid = np.concatenate([self.valid, np.zeros(grow, np.bool_)])
        self.bytes[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        self.valid[start : start + array.nbytes] = True
        if not initialised:
            self.unwritten.append((start, start + array.nbytes))
        self.buffers[start] = (array.shape, array.dtype)
        return GLOBAL_BASE + start

    def get(self, address: int) -> np.ndarray:
        """A copy of the buffer that begins at `address`, in the shape and dtype it was put."""
        start = address - GLOBAL_BASE
        shape, dtype = self.buffers[start]
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self.bytes[start : start + count].view(dtype).reshape(shape).copy()

    def offsets(self, address: np.ndarray, size: int, align: int | None = None) -> np.ndarray:
        """Offsets of accesses of `size` bytes, every one inside of a buffer and aligned."""
        start = address - GLOBAL_BASE
        outside = (start < 0) | (start + size > self.bytes.size)
        if not outside.any():
            outside = ~(self.valid[start] & self.valid[start + size - 1])
        if outside.any():
            worst = int(address[outside][0])
            raise AccessError(
                f"{size} bytes at global address {hex(worst)} are outside of every buffer"
                f"{self.nearest(worst)} ({int(outside.sum())} threads)"
            )
        check_alignment(start, align or size, "global")
        return start

    def nearest(self, address: int) -> str:
        start = address - GLOBAL_BASE
        below = [b for b in self.buffers if b <= start]
        if not below:
            return ""
        buffer = max(below)
        shape, dtype = self.buffers[buffer]
        return f"; byte {start - buffer} of a buffer of {dtype}{list(shape)}"


def check_alignment(offset: np.ndarray, align: int, space: str) -> None:
    if (offset & (align - 1)).any():
        worst = int(offset[(offset & (align - 1)) != 0][0])
        raise AccessError(f"misaligned: {space} offset {worst} is no multiple of {align} bytes")


class SharedMemory:
    """The shared memory of all resident blocks, block after block."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        self.stride = -(-size // 1024) * 1024 + 1024  # a descriptor may point a little beyond
        self.bytes = np.full(blocks * self.stride, 0xFF, np.uint8)

    def offsets(
        self, address: np.ndarray, block: np.ndarray, size: int, align: int | None = None
    ) -> np.ndarray:
        """Offsets of accesses of `size` bytes into `bytes`."""
        if ((address < 0) | (address + size > self.size)).any():
            bad = address[(address < 0) | (address + size > self.size)]
            raise AccessError(
                f"{size} bytes at shared address {int(bad[0])} of {self.size} ({len(bad)} threads)"
            )
        check_alignment(address, align or size, "shared")
        return address + block * self.stride


class LocalMemory:
    """One array of bytes a thread."""

    def __init__(self, threads: int, size: int) -> None:
        self.size = size
        self.bytes = np.full(threads * size, 0xFF, np.uint8)
        self.written = np.zeros(threads * size, np.bool_)

    def offsets(self, address: np.ndarray, thread: np.ndarray, size: int) -> np.ndarray:
        if ((address < 0) | (address + size > self.size)).any():
            raise AccessError(f"{size} bytes outside of the {self.size} bytes of local memory")
        check_alignment(address, size, "local")
        return address + thread * self.size


def parameter_bytes(param: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
    """Offsets of reads from the parameters."""
    if ((address < 0) | (address + size > param.size)).any():
        raise AccessError(f"{size} bytes outside of the {param.size} bytes of parameters")
    return address
