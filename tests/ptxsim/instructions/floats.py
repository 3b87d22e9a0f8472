"""Floating-point arithmetic: f32, f64, f16, bf16 and their pairs.

Results are rounded once, to nearest: halves are computed in float32 (float64 where that could round
twice), .approx forms with the precise function.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UnknownInstructionError
from ..halves import pack, to_bits, to_float, unpack
from ..parse import Instruction
from ..registers import Operands, Read, Write
from .registry import instruction

_TINY = np.float32(2.0**-126)
_IGNORED = {"rn", "approx", "full", "ftz", "sat", "NaN", "relu"}


def reader(ops: Operands, operand: str, type_: str) -> Read:
    """An operand to compute with: halves become float32."""
    if type_ in ("f16", "bf16"):
        read = (
            ops.read(operand, "b16") if not operand.startswith("0f") else ops.read(operand, "f32")
        )
        if operand.startswith("0f"):
            return read
        return lambda wave, gang: to_float(read(wave, gang), type_)
    return ops.read(operand, type_)


def _flush(value: Any) -> Any:
    return np.where(np.abs(value) < _TINY, np.copysign(np.float32(0), value), value)


def finish(found: Instruction, function: Any) -> Any:
    """The modifiers of an instruction around its function."""
    parts = found.parts
    for part in parts[1:-1]:
        if part not in _IGNORED and part not in ("rz", "rm", "rp"):
            raise UnknownInstructionError(f".{part} of {found.name} is not emulated")
    if {"rz", "rm", "rp"} & set(parts):
        function = _directed(function, next(p for p in parts if p in ("rz", "rm", "rp")))
    if "ftz" in parts and found.type == "f32":
        inner = function
        function = lambda *args: _flush(inner(*map(_flush, args)))  # noqa: E731
    if "sat" in parts:
        inside = function
        function = lambda *args: np.nan_to_num(np.clip(inside(*args), 0, 1))  # noqa: E731
    if "relu" in parts:
        plain = function
        function = lambda *args: np.maximum(plain(*args), 0)  # noqa: E731
    return function


def _directed(function: Any, mode: str) -> Any:
    """Rounding other than to nearest, of float32 functions: computed in float64, then stepped."""

    def rounded(*args: Any) -> Any:
        exact = np.asarray(function(*(np.asarray(a, np.float64) for a in args)), np.float64)
        near = exact.astype(np.float32)
        back = near.astype(np.float64)
        down, up = np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))
        floor, ceiling = np.where(back > exact, down, near), np.where(back < exact, up, near)
        if mode == "rm":
            return floor
        return ceiling if mode == "rp" else np.where(exact < 0, ceiling, floor)

    return rounded


def apply(ops: Operands, found: Instruction, count: int, function: Any) -> Any:
    """d = function(operands 1..count) in the type of the instruction."""
    type_ = found.type
    function = finish(found, function)
    destination = found.operands[0]
    operands = found.operands[1 : 1 + count]
    if type_ in ("f16x2", "bf16x2"):
        return _pairs(ops, destination, operands, type_[:-2], function)
    if type_ in ("f16", "bf16"):
        reads = [reader(ops, operand, type_) for operand in operands]
        write: Write = ops.write(destination, "b16")
        return lambda wave, gang: write(
            wave, gang, to_bits(function(*(read(wave, gang) for read in reads)), type_)
        )
    reads = [ops.read(operand, type_) for operand in operands]
    write = ops.write(destination, type_)
    if count == 1:
        (one,) = reads
        return lambda wave, gang: write(wave, gang, function(one(wave, gang)))
    if count == 2:
        a, b = reads
        return lambda wave, gang: write(wave, gang, function(a(wave, gang), b(wave, gang)))
    a, b, c = reads
    return lambda wave, gang: write(
        wave, gang, function(a(wave, gang), b(wave, gang), c(wave, gang))
    )


def _pairs(ops: Operands, destination: str, operands: list[str], kind: str, function: Any) -> Any:
    reads = [ops.read(operand, "b32") for operand in operands]
    write = ops.write(destination, "b32")

    def run(wave: Any, gang: Any) -> None:
        halves = [unpack(read(wave, gang), kind) for read in reads]
        low, high = (function(*(half[side] for half in halves)) for side in (0, 1))
        write(wave, gang, pack(low, high, kind))

    return run


_BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


def binary_float(ops: Operands, found: Instruction) -> Any:
    if found.name in ("min", "max"):
        names = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}[found.name]
        return apply(ops, found, 2, names["NaN" in found.parts])
    return apply(ops, found, 2, _BINARY[found.name])


def unary_float(ops: Operands, found: Instruction) -> Any:
    return apply(ops, found, 1, np.negative if found.name == "neg" else np.abs)


def _fused32(a: Any, b: Any, c: Any) -> Any:
    return (np.asarray(a, np.float64) * b + c).astype(np.float32)


def fma(ops: Operands, found: Instruction) -> Any:
    """Fused: a float32 product is exact in float64, a product of halves in float32."""
    if found.type == "f64":
        return apply(ops, found, 3, lambda a, b, c: a * b + c)
    if {"rz", "rm", "rp"} & set(found.parts):
        return apply(ops, found, 3, lambda a, b, c: a * b + c)
    return apply(ops, found, 3, _fused32)


_FUNCTIONS = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: np.asarray(1 / np.sqrt(np.asarray(x, np.float64)), x.dtype),
    "rcp": lambda x: np.asarray(1 / x, x.dtype),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@instruction(*_FUNCTIONS)
def function(ops: Operands, found: Instruction) -> Any:
    return apply(ops, found, 1, _FUNCTIONS[found.name])


@instruction("copysign")
def copysign(ops: Operands, found: Instruction) -> Any:
    return apply(ops, found, 2, lambda a, b: np.copysign(b, a))


@instruction("testp")
def testp(ops: Operands, found: Instruction) -> Any:
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda x: ~np.isnan(x),
        "notanumber": np.isnan,
    }
    test = tests[found.parts[1]]
    a, write = ops.read(found.operands[1], found.type), ops.write(found.operands[0], "pred")
    return lambda wave, gang: write(wave, gang, test(a(wave, gang)))
