"""ldmatrix, stmatrix and mma.sync."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .. import fragments
from ..errors import UnknownInstructionError
from ..halves import pack, to_float, to_tf32
from ..memory import SHARED_BASE
from ..parse import Instruction
from ..registers import LANES, Gang, Operands, Read
from ..shadow import COLLECTIVE
from .registry import instruction


def _rows(
    wave: Any, gang: Gang, address: np.ndarray, count: int, written: np.ndarray | None = None
) -> np.ndarray:
    """Offsets [warps, 8 * count] of the 16-byte rows that the first 8 * count lanes name.

    written: [rows, 8] of uint16, what these become; None: they are read.
    """
    address = gang.spread(address)[:, : 8 * count]
    address = np.where(address >= SHARED_BASE, address - SHARED_BASE, address)
    rows = np.repeat(gang.rows, 8 * count)
    offset = wave.shared.offsets(address.reshape(-1), rows % wave.blocks, 16)
    shadow = wave.shared_shadow
    lanes = np.full(len(rows), COLLECTIVE)
    granules = shadow.granules(offset, 16)
    if written is None:
        shadow.read(wave, rows, lanes, granules)
    else:
        same = (wave.shared.bytes.view(np.uint16).reshape(-1, 8)[offset // 16] == written).all(1)
        shadow.write(wave, rows, lanes, granules, same=same)
    if wave.banks is not None:
        wave.banks.count_rows(wave, address)
    return offset.reshape(address.shape)


def _shape(found: Instruction) -> tuple[int, bool]:
    if not {"m8n8", "b16"} <= set(found.parts):
        raise UnknownInstructionError(found.text)
    count = next(int(part[1]) for part in found.parts if part in ("x1", "x2", "x4"))
    return count, "trans" in found.parts


@instruction("ldmatrix")
def ldmatrix(ops: Operands, found: Instruction) -> Any:
    """Lane l gets elements 2 (l % 4) and the next of row l / 4 of every 8x8 matrix."""
    count, transposed = _shape(found)
    base, displacement = ops.address(found.operands[1])
    writes = [ops.write(name, "b32") for name in ops.vector(found.operands[0])]

    def run(wave: Any, gang: Gang) -> None:
        gang = wave.whole_warps(gang, "ldmatrix")
        offset = _rows(wave, gang, base(wave, gang) + displacement, count)
        tile = wave.shared.bytes.view(np.uint16).reshape(-1, 8)[offset // 16]
        tile = tile.reshape(-1, count, 8, 8)
        if transposed:
            tile = np.ascontiguousarray(tile.transpose(0, 1, 3, 2))
        values = tile.view(np.uint32).reshape(-1, count, LANES)
        for number, write in enumerate(writes):
            write(wave, gang, values[:, number])

    return run


@instruction("stmatrix")
def stmatrix(ops: Operands, found: Instruction) -> Any:
    count, transposed = _shape(found)
    base, displacement = ops.address(found.operands[0])
    reads = [ops.read(name, "b32") for name in ops.vector(found.operands[1])]

    def run(wave: Any, gang: Gang) -> None:
        gang = wave.whole_warps(gang, "stmatrix")
        values = np.stack([gang.spread(read(wave, gang)) for read in reads], 1)
        tile = values.view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            tile = tile.transpose(0, 1, 3, 2)
        tile = tile.reshape(-1, 8 * count, 8)
        address = base(wave, gang) + displacement
        offset = _rows(wave, gang, address, count, tile.reshape(-1, 8))
        wave.shared.bytes.view(np.uint16).reshape(-1, 8)[offset // 16] = tile

    return run


@instruction("movmatrix")
def movmatrix(ops: Operands, found: Instruction) -> Any:
    read, write = ops.read(found.operands[1], "b32"), ops.write(found.operands[0], "b32")

    def run(wave: Any, gang: Gang) -> None:
        gang = wave.whole_warps(gang, "movmatrix")
        tile = np.ascontiguousarray(gang.spread(read(wave, gang))).view(np.uint16)
        turned = np.ascontiguousarray(tile.reshape(-1, 8, 8).transpose(0, 2, 1))
        write(wave, gang, turned.view(np.uint32).reshape(-1, LANES))

    return run


def gather(
    wave: Any, gang: Gang, reads: list[Read], kind: str, layout: str, size: int
) -> np.ndarray:
    """The registers of a fragment as a tile of float32, [warps, elements in row-major order]."""
    warps = len(gang.rows)
    values = np.empty((warps, len(reads), LANES), np.uint32)
    for number, read in enumerate(reads):
        values[:, number] = read(wave, gang)
    order = fragments.inverse(layout, size)
    if kind in ("f16", "bf16"):
        halves = values.reshape(warps, -1).view(np.uint16)
        return to_float(np.take(halves, order, 1), kind)
    words = np.take(values.reshape(warps, -1), order, 1)
    return to_tf32(words) if kind == "tf32" else words.view(np.float32)


def _checked_shape(found: Instruction) -> tuple[int, str, str, str]:
    """k and the types of D, A and B of the forms that exist here."""
    shape = next(part for part in found.parts if re.match(r"m\d+n\d+k\d+$", part))
    result, a, b, c = found.parts[-4:]
    k = int(shape.rsplit("k", 1)[1])
    floats = a == b and result == c and {"row", "col"} <= set(found.parts)
    half = a in ("f16", "bf16") and k in (8, 16) and (a == "f16" or result == "f32")
    tf32 = a == "tf32" and k in (4, 8) and result == "f32"
    if not shape.startswith("m16n8k") or not floats or not (half or tf32):
        raise UnknownInstructionError(found.text)
    return k, result, a, b


@instruction("mma")
def mma(ops: Operands, found: Instruction) -> Any:
    """D = A B + C with A [16, k], B [k, 8]; the sum is rounded once for every instruction."""
    k, result, kind, _ = _checked_shape(found)
    a, b = ([ops.read(n, "b32") for n in ops.vector(o)] for o in found.operands[1:3])
    c_type = "b32" if result == "f16" else "f32"
    c = [ops.read(name, c_type) for name in ops.vector(found.operands[3])]
    writes = [ops.write(name, c_type) for name in ops.vector(found.operands[0])]
    bits = "32" if kind == "tf32" else "16"
    layout_c = "c_16" if result == "f16" else "c_32"
    places = fragments.c_16(8) if result == "f16" else fragments.c_32(8)

    def run(wave: Any, gang: Gang) -> None:
        gang = wave.whole_warps(gang, "mma.sync")
        left = gather(wave, gang, a, kind, f"a_{bits}", k).reshape(-1, 16, k)
        right = gather(wave, gang, b, kind, f"b_{bits}", k).reshape(-1, k, 8)
        product = np.matmul(left, right).reshape(-1, 128)
        if result == "f16":
            total = product + gather(wave, gang, c, "f16", layout_c, 8)
            halves = total[:, places]
            for number, write in enumerate(writes):
                write(wave, gang, pack(halves[:, number, 0], halves[:, number, 1], "f16"))
            return
        values = np.take(product, places[:, 0], 1)
        for number, write in enumerate(writes):
            write(wave, gang, values[:, number] + c[number](wave, gang))

    return run
