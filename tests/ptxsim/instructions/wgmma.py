"""wgmma: products of a warpgroup, A from registers or shared memory, B from shared memory."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from .. import fragments
from ..errors import AccessError, BarrierError, UnknownInstructionError
from ..halves import pack, to_float, to_tf32
from ..parse import Instruction
from ..registers import Gang, Operands
from ..tensor_map import swizzled
from .matrix import gather
from .registry import instruction

_SWIZZLES = (0, 128, 64, 32)
_WARPS = 4


@functools.cache
def k_major(rows: int, swizzle: int, lead: int, stride: int) -> np.ndarray:
    """[rows, 2] relative addresses of the 16-byte units of a tile whose rows go along K."""
    row, unit = np.arange(rows)[:, None], np.arange(2)[None]
    if not swizzle:
        return row % 8 * 16 + row // 8 * stride + unit * lead
    return row % 8 * swizzle + row // 8 * stride + unit * 16


@functools.cache
def mn_major(rows: int, depth: int, swizzle: int, lead: int, stride: int) -> np.ndarray:
    """[rows / 8, depth] the same for a tile whose 16-byte units hold 8 rows of one k."""
    unit, k = np.arange(rows // 8)[:, None], np.arange(depth)[None]
    if not swizzle:
        return unit * stride + k % 8 * 16 + k // 8 * lead
    atom = swizzle // 16
    return unit % atom * 16 + unit // atom * lead + k % 8 * swizzle + k // 8 * stride


class _Tile:
    """One operand in shared memory: `rows` along M or N, one step of K deep (32 bytes)."""

    def __init__(self, kind: str, rows: int, transposed: bool) -> None:
        self.kind, self.rows, self.transposed = kind, rows, transposed
        self.depth = 8 if kind == "tf32" else 16

    def units(self, wave: Any, gang: Gang, descriptor: np.ndarray, first_row: Any) -> np.ndarray:
        """[warps, units] checked offsets. first_row: of the tile that starts at a descriptor."""
        out = []
        for at, row in enumerate(gang.rows.tolist()):
            bits = int(descriptor[at])
            start, lead = (bits & 0x3FFF) << 4, (bits >> 16 & 0x3FFF) << 4
            stride, swizzle = (bits >> 32 & 0x3FFF) << 4, _SWIZZLES[bits >> 62]
            if bits >> 49 & 7:
                raise UnknownInstructionError("a matrix descriptor with a base offset")
            all_rows = self.rows + int(first_row[at])
            if self.transposed:
                relative = mn_major(all_rows, self.depth, swizzle, lead, stride)
                relative = relative[int(first_row[at]) // 8 :]
            else:
                relative = k_major(all_rows, swizzle, lead, stride)[int(first_row[at]) :]
            address = swizzled(start + relative.reshape(-1), swizzle)
            if address.max() + 16 > wave.shared.size:
                raise AccessError(f"a matrix descriptor reaches byte {int(address.max()) + 16}")
            out.append(address + row % wave.blocks * wave.shared.stride)
        return np.stack(out)

    def values(self, wave: Any, units: np.ndarray) -> np.ndarray:
        """[tiles, rows, depth] float32."""
        cells = wave.shared.bytes.view(np.uint32 if self.kind == "tf32" else np.uint16)
        per_unit = 4 if self.kind == "tf32" else 8
        raw = cells.reshape(-1, per_unit)[units // 16]
        if self.transposed:
            raw = raw.reshape(len(units), self.rows // 8, self.depth, 8).transpose(0, 1, 3, 2)
        raw = np.ascontiguousarray(raw).reshape(len(units), self.rows, self.depth)
        return to_tf32(raw) if self.kind == "tf32" else to_float(raw, self.kind)


@instruction("wgmma")
def wgmma(ops: Operands, found: Instruction) -> Any:
    name = found.parts[1]
    if name == "fence":
        return lambda wave, gang: wave.matrix.fence(wave.whole_warps(gang, "wgmma.fence"))
    if name == "commit_group":
        return lambda wave, gang: wave.matrix.commit(wave.whole_warps(gang, "wgmma"))
    if name == "wait_group":
        newest = int(found.operands[0], 0)
        return lambda wave, gang: wave.matrix.wait(wave.whole_warps(gang, "wgmma"), newest)
    return _Product(ops, found).run


def _uniform(gang: Gang, value: Any, what: str) -> np.ndarray:
    value = gang.spread(value)
    if (value != value[:, :1]).any():
        raise BarrierError(f"wgmma: the lanes of a warp have different {what}")
    return value[:, 0]


class _Product:
    """D = A B + D, or A B where scale-d is false; warp w of four has rows 16 w .. 16 w + 15."""

    def __init__(self, ops: Operands, found: Instruction) -> None:
        shape = next(part for part in found.parts if re.match(r"m64n\d+k\d+$", part))
        self.columns, self.depth = (int(x) for x in re.findall(r"\d+", shape)[1:])
        self.result, kind, other = found.parts[-3:]
        depths = {"f16": 16, "bf16": 16, "tf32": 8}
        if kind != other or self.depth != depths.get(kind) or self.columns % 8:
            raise UnknownInstructionError(found.text)
        self.kind = kind
        self._read_operands(ops, found)

    def _read_operands(self, ops: Operands, found: Instruction) -> None:
        """D, A, B, scale-d, then signs of A and B, then which of them are transposed."""
        d, a, b, keep = found.operands[:4]
        d_type = "b32" if self.result == "f16" else "f32"
        d_names = ops.vector(d)
        self.old = [ops.raw_read(name, d_type) for name in d_names]
        self.writes = [ops.raw_write(name) for name in d_names]
        self.d_numbers = [ops.number[name] for name in d_names]
        in_registers = a.startswith("{")
        a_names = ops.vector(a) if in_registers else []
        self.a_registers = [ops.raw_read(name, "b32") for name in a_names]
        self.a_numbers = [ops.number[name] for name in a_names]
        self.a_descriptor = None if in_registers else ops.read(a, "u64")
        self.b_descriptor, self.keep = ops.read(b, "u64"), ops.read(keep, "pred")
        a_sign, b_sign, *turned = (int(operand, 0) for operand in found.operands[4:])
        self.sign = np.float32(a_sign * b_sign)
        b_turned = bool(turned and turned[-1])
        a_turned = len(turned) == 2 and bool(turned[0])
        self.a_tile = _Tile(self.kind, 16, a_turned)
        self.b_tile = _Tile(self.kind, self.columns, b_turned)

    def left(self, wave: Any, gang: Gang) -> np.ndarray:
        """A of every warp, [warps, 16, depth]."""
        if self.a_descriptor is None:
            layout = "a_32" if self.kind == "tf32" else "a_16"
            flat = gather(wave, gang, self.a_registers, self.kind, layout, self.depth)
            return flat.reshape(-1, 16, self.depth)
        first = gang.rows // wave.blocks % _WARPS * 16
        descriptor = _uniform(gang, self.a_descriptor(wave, gang), "A")
        units = self.a_tile.units(wave, gang, descriptor, first)
        wave.matrix.read_shared(gang, units)
        return self.a_tile.values(wave, units)

    def run(self, wave: Any, gang: Gang) -> None:
        gang = wave.whole_warps(gang, "wgmma")
        for number in self.a_numbers:
            wave.matrix.check_operand(gang, number, wave.register_name(number))
        adds = _uniform(gang, self.keep(wave, gang), "scale-d")[:, None]
        a = self.left(wave, gang)
        descriptor = _uniform(gang, self.b_descriptor(wave, gang), "B")
        units = self.b_tile.units(wave, gang, descriptor, np.zeros(len(gang.rows), np.int64))
        wave.matrix.read_shared(gang, units)
        product = _multiply(wave, a, self.b_tile, units) * self.sign
        wave.matrix.use(gang, self.d_numbers, self.a_numbers)
        flat = product.reshape(len(gang.rows), -1)
        if self.result == "f16":
            self.add_halves(wave, gang, flat, adds)
        else:
            self.add_floats(wave, gang, flat, adds)

    def add_floats(self, wave: Any, gang: Gang, flat: np.ndarray, adds: np.ndarray) -> None:
        values = flat[:, fragments.c_32(self.columns)[:, 0]]
        for at, write in enumerate(self.writes):
            value = values[:, at]
            if adds.any():
                value = value + np.where(adds, self.old[at](wave, gang), np.float32(0))
            write(wave, gang, value)

    def add_halves(self, wave: Any, gang: Gang, flat: np.ndarray, adds: np.ndarray) -> None:
        if adds.any():
            old = gather(wave, gang, self.old, "f16", "c_16", self.columns)
            flat = flat + np.where(adds, old, np.float32(0))
        halves = flat[:, fragments.c_16(self.columns)]
        for at, write in enumerate(self.writes):
            write(wave, gang, pack(halves[:, at, 0], halves[:, at, 1], "f16"))


def _multiply(wave: Any, a: np.ndarray, tile: _Tile, units: np.ndarray) -> np.ndarray:
    """Warps of one block mostly share B: every tile is fetched once."""
    _, first, which = np.unique(units[:, 0], return_index=True, return_inverse=True)
    if (units == units[first][which]).all():
        b = tile.values(wave, units[first])[which]
    else:
        b = tile.values(wave, units)
    return np.matmul(a, b.transpose(0, 2, 1))
