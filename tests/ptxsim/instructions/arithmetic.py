"""Integer arithmetic, comparisons and selections."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UnknownInstructionError
from ..parse import Instruction
from ..registers import DTYPES, Gang, Operands
from . import floats
from .registry import instruction

WIDE = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
INTEGERS = {f"{kind}{bits}" for kind in "bsu" for bits in (8, 16, 32, 64)}


def binary(ops: Operands, found: Instruction, type_: str, function: Any) -> Any:
    """d = function(a, b), all of one type."""
    a, b = (ops.read(operand, type_) for operand in found.operands[1:3])
    write = ops.write(found.operands[0], type_)
    return lambda wave, gang: write(wave, gang, function(a(wave, gang), b(wave, gang)))


def unary(ops: Operands, found: Instruction, type_: str, function: Any) -> Any:
    a, write = ops.read(found.operands[1], type_), ops.write(found.operands[0], type_)
    return lambda wave, gang: write(wave, gang, function(a(wave, gang)))


def ternary(ops: Operands, found: Instruction, type_: str, function: Any) -> Any:
    a, b, c = (ops.read(operand, type_) for operand in found.operands[1:4])
    write = ops.write(found.operands[0], type_)
    return lambda wave, gang: write(
        wave, gang, function(a(wave, gang), b(wave, gang), c(wave, gang))
    )


def is_integer(found: Instruction) -> bool:
    return found.type in INTEGERS


_BINARY = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}


@instruction("add", "sub", "min", "max")
def add_like(ops: Operands, found: Instruction) -> Any:
    if not is_integer(found):
        return floats.binary_float(ops, found)
    if "cc" in found.parts or found.type not in DTYPES or "sat" in found.parts:
        raise UnknownInstructionError(f"{'.'.join(found.parts)} is not emulated")
    return binary(ops, found, found.type, _BINARY[found.name])


def _high(a: Any, b: Any, type_: str) -> Any:
    """Upper half of the product."""
    if type_[1:] == "32":
        wide = DTYPES[WIDE[type_]]
        product = a.astype(wide) * b.astype(wide)
        return (product >> wide(32)).astype(DTYPES[type_])
    ua, ub = a.astype(np.uint64), b.astype(np.uint64)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = ua & low, ua >> shift, ub & low, ub >> shift
    middle = a1 * b0 + ((a0 * b0) >> shift)
    middle2 = a0 * b1 + (middle & low)
    high = a1 * b1 + (middle >> shift) + (middle2 >> shift)
    if type_ == "s64":
        high = high - np.where(a < 0, ub, np.uint64(0)) - np.where(b < 0, ua, np.uint64(0))
    return high.view(DTYPES[type_])


def _product(found: Instruction) -> Any:
    type_ = found.type
    if "wide" in found.parts:
        wide = DTYPES[WIDE[type_]]
        return lambda a, b: a.astype(wide) * b.astype(wide)
    if "hi" in found.parts:
        return lambda a, b: _high(a, b, type_)
    return lambda a, b: a * b


@instruction("mul")
def mul(ops: Operands, found: Instruction) -> Any:
    if not is_integer(found):
        return floats.binary_float(ops, found)
    function, type_ = _product(found), found.type
    a, b = (ops.read(operand, type_) for operand in found.operands[1:3])
    write = ops.write(found.operands[0], WIDE[type_] if "wide" in found.parts else type_)
    return lambda wave, gang: write(wave, gang, function(a(wave, gang), b(wave, gang)))


@instruction("mad", "fma")
def mad(ops: Operands, found: Instruction) -> Any:
    if not is_integer(found):
        return floats.fma(ops, found)
    function, type_ = _product(found), found.type
    total = WIDE[type_] if "wide" in found.parts else type_
    a, b = (ops.read(operand, type_) for operand in found.operands[1:3])
    c, write = ops.read(found.operands[3], total), ops.write(found.operands[0], total)
    return lambda wave, gang: write(
        wave, gang, function(a(wave, gang), b(wave, gang)) + c(wave, gang)
    )


def _quotient(a: Any, b: Any) -> Any:
    """Integer division that rounds towards zero; by zero it gives all ones."""
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    result = a // safe
    if a.dtype.kind == "i":
        result = result + ((result < 0) & (result * safe != a)).astype(a.dtype)
    return np.where(zero, np.array(-1).astype(a.dtype), result)


@instruction("div", "rem")
def div(ops: Operands, found: Instruction) -> Any:
    if not is_integer(found):
        return floats.binary_float(ops, found)
    if found.name == "div":
        return binary(ops, found, found.type, _quotient)
    return binary(ops, found, found.type, lambda a, b: a - _quotient(a, b) * b)


@instruction("neg", "abs")
def neg(ops: Operands, found: Instruction) -> Any:
    if not is_integer(found):
        return floats.unary_float(ops, found)
    return unary(ops, found, found.type, np.negative if found.name == "neg" else np.abs)


@instruction("sad")
def sad(ops: Operands, found: Instruction) -> Any:
    return ternary(ops, found, found.type, lambda a, b, c: c + np.where(a < b, b - a, a - b))


@instruction("dp4a", "dp2a")
def dot(ops: Operands, found: Instruction) -> Any:
    """d = c + the dot product of the bytes of a and b."""
    if found.name == "dp2a":
        raise UnknownInstructionError("dp2a is not emulated")
    kinds = ["i1" if part == "s32" else "u1" for part in found.parts[-2:]]
    a, b = (ops.read(operand, "b32") for operand in found.operands[1:3])
    total = "s32" if "i1" in kinds else "u32"
    c, write = ops.read(found.operands[3], total), ops.write(found.operands[0], total)

    def run(wave: Any, gang: Gang) -> None:
        parts = [
            np.ascontiguousarray(gang.spread(read(wave, gang)))[..., None].view(kind)
            for read, kind in ((a, kinds[0]), (b, kinds[1]))
        ]
        product = (parts[0].astype(np.int64) * parts[1].astype(np.int64)).sum(-1)
        write(wave, gang, (c(wave, gang) + product).astype(DTYPES[total]))

    return run


_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal,
    "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(name: str, type_: str) -> Any:
    """The comparison of setp and set; floats: 'u' forms hold for NaN, plain ones do not."""
    if not (type_[0] == "f" or type_ == "bf16"):
        return _COMPARE[name]
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
        ordered = _COMPARE[name[:-1]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    return _COMPARE[name]


@instruction("setp")
def setp(ops: Operands, found: Instruction) -> Any:
    type_ = found.type
    if type_ in ("f16x2", "bf16x2"):
        raise UnknownInstructionError("a comparison of packed halves")
    compare = comparison(found.parts[1], type_)
    a, b = (floats.reader(ops, operand, type_) for operand in found.operands[1:3])
    first, *second = found.operands[0].split("|")
    write = ops.write(first, "pred")
    combine = _COMBINE.get(found.parts[2]) if len(found.operands) > 3 else None
    if combine is None:
        if second:
            other = ops.write(second[0], "pred")

            def both(wave: Any, gang: Gang) -> None:
                result = compare(a(wave, gang), b(wave, gang))
                write(wave, gang, result)
                other(wave, gang, ~result)

            return both
        return lambda wave, gang: write(wave, gang, compare(a(wave, gang), b(wave, gang)))
    operand = found.operands[3]
    negated = operand.startswith("!")
    c = ops.read(operand.lstrip("!"), "pred")

    def run(wave: Any, gang: Gang) -> None:
        result, third = compare(a(wave, gang), b(wave, gang)), c(wave, gang)
        third = ~third if negated else third
        write(wave, gang, combine(result, third))
        if second:
            ops.write(second[0], "pred")(wave, gang, combine(~result, third))

    return run


@instruction("set")
def set_(ops: Operands, found: Instruction) -> Any:
    to, type_ = found.parts[-2], found.type
    compare = comparison(found.parts[1], type_)
    a, b = (floats.reader(ops, operand, type_) for operand in found.operands[1:3])
    write = ops.write(found.operands[0], to)
    dtype = DTYPES[to]
    true = dtype(1.0) if to[0] == "f" else np.array(-1).astype(dtype)
    return lambda wave, gang: write(
        wave, gang, np.where(compare(a(wave, gang), b(wave, gang)), true, dtype(0))
    )


@instruction("selp")
def selp(ops: Operands, found: Instruction) -> Any:
    type_ = found.type
    a, b = (ops.read(operand, type_) for operand in found.operands[1:3])
    chosen, write = ops.read(found.operands[3], "pred"), ops.write(found.operands[0], type_)
    return lambda wave, gang: write(
        wave, gang, np.where(chosen(wave, gang), a(wave, gang), b(wave, gang))
    )


@instruction("slct")
def slct(ops: Operands, found: Instruction) -> Any:
    type_ = found.parts[-2]
    a, b = (ops.read(operand, type_) for operand in found.operands[1:3])
    c, write = ops.read(found.operands[3], found.type), ops.write(found.operands[0], type_)
    return lambda wave, gang: write(
        wave, gang, np.where(c(wave, gang) >= 0, a(wave, gang), b(wave, gang))
    )
