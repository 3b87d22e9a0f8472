"""Logic, shifts, bit fields, byte permutation and moves."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..parse import Instruction
from ..registers import DTYPES, Gang, Operands
from ..variables import TYPE_BYTES
from .arithmetic import binary, ternary, unary
from .registry import instruction

_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@instruction(*_LOGIC)
def logic(ops: Operands, found: Instruction) -> Any:
    return binary(ops, found, found.type, _LOGIC[found.name])


@instruction("not")
def not_(ops: Operands, found: Instruction) -> Any:
    return unary(ops, found, found.type, np.invert)


@instruction("cnot")
def cnot(ops: Operands, found: Instruction) -> Any:
    dtype = DTYPES[found.type]
    return unary(ops, found, found.type, lambda a: (a == 0).astype(dtype))


@instruction("shl", "shr")
def shift(ops: Operands, found: Instruction) -> Any:
    """Amounts beyond the width give 0, or the sign for shr.s."""
    type_ = found.type
    dtype, last = DTYPES[type_], TYPE_BYTES[type_] * 8 - 1
    a, amount = ops.read(found.operands[1], type_), ops.read(found.operands[2], "u32")
    write = ops.write(found.operands[0], type_)
    move = np.left_shift if found.name == "shl" else np.right_shift
    signed = found.name == "shr" and type_[0] == "s"

    def run(wave: Any, gang: Gang) -> None:
        by = amount(wave, gang)
        result = move(a(wave, gang), np.minimum(by, np.uint32(last)).astype(dtype))
        if not signed and (by > last).any():
            result = np.where(by > last, dtype(0), result)
        write(wave, gang, result)

    return run


@instruction("shf")
def funnel(ops: Operands, found: Instruction) -> Any:
    """The 64 bits b:a shifted, of which 32 are kept."""
    left, wrap = found.parts[1] == "l", found.parts[2] == "wrap"
    a, b, amount = (ops.read(operand, "u32") for operand in found.operands[1:4])
    write = ops.write(found.operands[0], "u32")

    def run(wave: Any, gang: Gang) -> None:
        both = a(wave, gang).astype(np.uint64) | (b(wave, gang).astype(np.uint64) << np.uint64(32))
        by = amount(wave, gang).astype(np.uint64)
        by = by & np.uint64(31) if wrap else np.minimum(by, np.uint64(32))
        moved = both >> (np.uint64(32) - by) if left else both >> by
        write(wave, gang, moved.astype(np.uint32))

    return run


@instruction("lop3")
def lop3(ops: Operands, found: Instruction) -> Any:
    table = int(found.operands[4], 0)
    ones = np.uint32(0xFFFFFFFF)

    def function(a: Any, b: Any, c: Any) -> Any:
        result = np.uint32(0)
        for row in range(8):
            if table >> row & 1:
                term = (a if row & 4 else a ^ ones) & (b if row & 2 else b ^ ones)
                result = result | (term & (c if row & 1 else c ^ ones))
        return result

    return ternary(ops, found, "b32", function)


@instruction("bfe")
def bfe(ops: Operands, found: Instruction) -> Any:
    """A field of a; what lies beyond the register is 0 or the sign."""
    type_ = found.type
    bits, signed = TYPE_BYTES[type_] * 8, found.type[0] == "s"
    unsigned = DTYPES[f"u{bits}"]
    a = ops.read(found.operands[1], f"u{bits}")
    start, length = (ops.read(operand, "u32") for operand in found.operands[2:4])
    write = ops.write(found.operands[0], f"u{bits}")

    def run(wave: Any, gang: Gang) -> None:
        value = gang.spread(a(wave, gang)).astype(object)
        first = (gang.spread(start(wave, gang)) & np.uint32(255)).astype(object)
        count = (gang.spread(length(wave, gang)) & np.uint32(255)).astype(object)
        field = (value >> first) & ((1 << count) - 1)
        if signed:
            top = np.minimum(first + count - 1, bits - 1)
            negative = ((value >> np.maximum(top, 0)) & 1).astype(bool) & (count > 0)
            have = np.maximum(np.minimum(count, bits - first), 0)
            field = np.where(negative, field | (((1 << bits) - 1) ^ ((1 << have) - 1)), field)
        write(wave, gang, field.astype(np.uint64).astype(unsigned))

    return run


@instruction("bfi")
def bfi(ops: Operands, found: Instruction) -> Any:
    bits = TYPE_BYTES[found.type] * 8
    dtype = DTYPES[f"u{bits}"]
    a, b = (ops.read(operand, f"u{bits}") for operand in found.operands[1:3])
    start, length = (ops.read(operand, "u32") for operand in found.operands[3:5])
    write = ops.write(found.operands[0], f"u{bits}")

    def run(wave: Any, gang: Gang) -> None:
        first = (start(wave, gang) & np.uint32(255)).astype(object)
        count = (length(wave, gang) & np.uint32(255)).astype(object)
        field = (((1 << count) - 1) << first) & ((1 << bits) - 1)
        kept = b(wave, gang).astype(object) & (((1 << bits) - 1) ^ field)
        result = kept | ((a(wave, gang).astype(object) << first) & field)
        write(wave, gang, np.asarray(result, np.uint64).astype(dtype))

    return run


@instruction("bmsk")
def bmsk(ops: Operands, found: Instruction) -> Any:
    a, b = (ops.read(operand, "u32") for operand in found.operands[1:3])
    write = ops.write(found.operands[0], "u32")

    def run(wave: Any, gang: Gang) -> None:
        first, count = (np.minimum(r(wave, gang).astype(np.uint64), np.uint64(32)) for r in (a, b))
        one = np.uint64(1)
        write(wave, gang, (((one << count) - one) << first).astype(np.uint32))

    return run


@instruction("prmt")
def prmt(ops: Operands, found: Instruction) -> Any:
    """Picks four of the eight bytes of b:a; bit 3 of a selector repeats the byte's sign."""
    if found.parts[1] != "b32":
        raise ValueError(found.parts[1])

    def function(a: Any, b: Any, chosen: Any) -> Any:
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        result = np.uint32(0)
        for byte in range(4):
            selector = (chosen >> np.uint32(4 * byte)).astype(np.uint64)
            value = (both >> ((selector & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = np.where(value & np.uint64(128), np.uint64(255), np.uint64(0))
            value = np.where(selector & np.uint64(8), sign, value)
            result = result | (value.astype(np.uint32) << np.uint32(8 * byte))
        return result

    return ternary(ops, found, "b32", function)


@instruction("popc")
def popc(ops: Operands, found: Instruction) -> Any:
    a, write = ops.read(found.operands[1], found.type), ops.write(found.operands[0], "u32")
    return lambda wave, gang: write(wave, gang, np.bitwise_count(a(wave, gang)).astype(np.uint32))


def _bit_length(value: Any) -> Any:
    high = (value >> np.uint64(32)).astype(np.float64)
    low = (value & np.uint64(0xFFFFFFFF)).astype(np.float64)
    return np.where(high > 0, np.frexp(high)[1] + 32, np.frexp(low)[1]).astype(np.uint32)


@instruction("clz")
def clz(ops: Operands, found: Instruction) -> Any:
    bits = np.uint32(TYPE_BYTES[found.type] * 8)
    a, write = ops.read(found.operands[1], found.type), ops.write(found.operands[0], "u32")
    return lambda wave, gang: write(wave, gang, bits - _bit_length(a(wave, gang).astype(np.uint64)))


@instruction("bfind")
def bfind(ops: Operands, found: Instruction) -> Any:
    bits = TYPE_BYTES[found.type] * 8
    a = ops.read(found.operands[1], found.type)
    write = ops.write(found.operands[0], "u32")
    amount = "shiftamt" in found.parts

    def run(wave: Any, gang: Gang) -> None:
        value = a(wave, gang)
        if found.type[0] == "s":
            value = np.where(value < 0, ~value, value)
        top = _bit_length(value.astype(np.uint64)) - np.uint32(1)
        missing = top == np.uint32(0xFFFFFFFF)
        result = np.where(missing, top, np.uint32(bits - 1) - top) if amount else top
        write(wave, gang, result)

    return run


@instruction("brev")
def brev(ops: Operands, found: Instruction) -> Any:
    bits = TYPE_BYTES[found.type] * 8
    dtype = DTYPES[f"u{bits}"]

    def function(value: Any) -> Any:
        result = dtype(0)
        for bit in range(bits):
            result = result | (((value >> dtype(bit)) & dtype(1)) << dtype(bits - 1 - bit))
        return result

    return unary(ops, found, f"u{bits}", function)


@instruction("mov")
def mov(ops: Operands, found: Instruction) -> Any:
    to, source = found.operands
    if source.startswith("{"):
        return _join(ops, found)
    if to.startswith("{"):
        return _cut(ops, found)
    return unary(ops, found, found.type, lambda value: value)


def _join(ops: Operands, found: Instruction) -> Any:
    bits = TYPE_BYTES[found.type] * 8
    names = ops.vector(found.operands[1])
    part, dtype = bits // len(names), DTYPES[f"u{bits}"]
    reads = [ops.read(name, f"u{part}") for name in names]
    write = ops.write(found.operands[0], f"u{bits}")

    def run(wave: Any, gang: Gang) -> None:
        value = reads[0](wave, gang).astype(dtype)
        for number, read in enumerate(reads[1:], 1):
            value = value | (read(wave, gang).astype(dtype) << dtype(part * number))
        write(wave, gang, value)

    return run


def _cut(ops: Operands, found: Instruction) -> Any:
    bits = TYPE_BYTES[found.type] * 8
    names = ops.vector(found.operands[0])
    part = bits // len(names)
    whole, piece = DTYPES[f"u{bits}"], DTYPES[f"u{part}"]
    read = ops.read(found.operands[1], f"u{bits}")
    writes = [ops.write(name, f"u{part}") for name in names]

    def run(wave: Any, gang: Gang) -> None:
        value = read(wave, gang)
        for number, write in enumerate(writes):
            write(wave, gang, (value >> whole(part * number)).astype(piece))

    return run
