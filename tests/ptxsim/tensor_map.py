"""Tensor maps: what a kernel's CUtensorMap says, in an encoding of the emulator's own."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import AccessError

_MAGIC = b"tensor\0\0"
_FORMAT = "<8sQ4B5I5Q5I"
BYTES = 128
_SWIZZLE_BYTES = (0, 32, 64, 128)


@dataclass(frozen=True)
class TensorMap:
    """A tensor in global memory and the box that one copy moves; innermost dimension first.

    strides: bytes, that of the innermost dimension is the element size; swizzle: 0, 32, 64, 128.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_bytes: int
    swizzle: int

    def offsets(self, start: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Addresses of the elements of the box at `start`, in its order, and which exist."""
        number = np.arange(int(np.prod(self.box)))
        address = np.full(len(number), self.address, np.int64)
        inside = np.ones(len(number), np.bool_)
        for size, extent, stride, first in zip(
            self.box, self.shape, self.strides, start, strict=True
        ):
            index = number % size + first
            number = number // size
            inside &= (index >= 0) & (index < extent)
            address += index * stride
        return address, inside

    @property
    def box_bytes(self) -> int:
        return int(np.prod(self.box)) * self.element_bytes


def tensor_map(
    address: int,
    shape: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    element_bytes: int,
    swizzle: int,
) -> bytes:
    """The 128 bytes of a tensor map, to be given to a kernel; see TensorMap for the arguments.

    The rules of cuTensorMapEncodeTiled hold: the address and the strides are multiples of 16 bytes,
    a box is at most 256 wide, its rows are multiples of 16 bytes and no longer than the swizzle.
    """
    rank, inner = len(shape), box[0] * element_bytes
    if not rank == len(box) == len(strides) <= 5:
        raise ValueError(f"shape, strides, box: one length of at most 5, got {rank}")
    if address % 16 or any(stride % 16 for stride in strides[1:]):
        raise ValueError("address, strides: multiples of 16 bytes are needed")
    if inner % 16 or not all(0 < size <= 256 for size in box):
        raise ValueError(f"box: rows of 16-byte multiples and at most 256 wide, got {tuple(box)}")
    if swizzle not in _SWIZZLE_BYTES or (swizzle and inner > swizzle):
        raise ValueError(f"swizzle: 0, 32, 64 or 128 and not below a row of {inner} bytes")
    pad = [1] * (5 - rank)
    code = struct.pack(
        _FORMAT, _MAGIC, address, rank, element_bytes, _SWIZZLE_BYTES.index(swizzle), 0,
        *shape, *pad, *strides, *pad, *box, *pad,
    )  # fmt: skip
    return code.ljust(BYTES, b"\0")


def decode(content: bytes) -> TensorMap:
    """The inverse; anything else is an error of the kernel."""
    magic, address, rank, element, swizzle, _, *rest = struct.unpack_from(_FORMAT, content)
    if magic != _MAGIC:
        raise AccessError("what a bulk copy was given as its tensor map is none")
    return TensorMap(
        address, tuple(rest[:rank]), tuple(rest[5 : 5 + rank]), tuple(rest[10 : 10 + rank]),
        element, _SWIZZLE_BYTES[swizzle],
    )  # fmt: skip


def swizzled(offset: np.ndarray, swizzle: int) -> np.ndarray:
    """Shared addresses after the XOR of the 16-byte column with the row, in atoms of 8 rows."""
    mask = {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]
    return offset ^ (((offset >> 7) & mask) << 4)
