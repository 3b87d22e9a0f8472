"""cvt and cvta."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UnknownInstructionError
from ..halves import f32_to_bf16, f32_to_f16, pack, round_tf32, to_float, unpack
from ..memory import LOCAL_BASE, PARAM_BASE, SHARED_BASE
from ..parse import Instruction
from ..registers import DTYPES, Gang, Operands, Read
from .registry import instruction

_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_KNOWN = {"rn", "rz", "rm", "rp", "rna", "ftz", "sat", "relu", "satfinite", *_ROUND}
_HALVES = ("f16", "bf16")


def _is_float(type_: str) -> bool:
    return type_[0] == "f" or type_ in ("bf16", "tf32")


def _source(ops: Operands, operand: str, type_: str) -> Read:
    if type_ in _HALVES:
        read = ops.read(operand, "b16")
        return lambda wave, gang: to_float(read(wave, gang), type_)
    return ops.read(operand, type_)


@instruction("cvt")
def cvt(ops: Operands, found: Instruction) -> Any:
    to, source = found.parts[-2:]
    modes = set(found.parts[1:-2])
    if unknown := modes - _KNOWN - {"pack"}:
        raise UnknownInstructionError(f"cvt with {sorted(unknown)}")
    if to in ("f16x2", "bf16x2"):
        return _two_halves(ops, found, to[:-2], modes)
    if "x2" in to or "x2" in source or "pack" in modes:
        raise UnknownInstructionError(f"cvt to {to} from {source}")
    read = _source(ops, found.operands[1], source)
    function = _conversion(to, source, modes)
    held = {"f16": "b16", "bf16": "b16", "tf32": "b32"}.get(to, to)
    write = ops.write(found.operands[0], held)
    return lambda wave, gang: write(wave, gang, function(read(wave, gang)))


def _conversion(to: str, source: str, modes: set[str]) -> Any:
    if _is_float(to) and _is_float(source):
        return _float_to_float(to, modes)
    if _is_float(to):
        return _integer_to_float(to, modes)
    if _is_float(source):
        return _float_to_integer(to, modes)
    dtype = DTYPES[to]
    if "sat" in modes:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return lambda value: np.clip(value.astype(object), low, high).astype(dtype)
    return lambda value: value.astype(dtype)


def _integer_to_float(to: str, modes: set[str]) -> Any:
    if to == "f32":
        if {"rz", "rm", "rp"} & modes:
            return lambda value: narrowed(value.astype(np.float64), modes)
        return lambda value: value.astype(np.float32)
    if to in _HALVES:
        finish = _float_to_float(to, modes)
        return lambda value: finish(value.astype(np.float32))
    return lambda value: value.astype(np.float64)


def narrowed(value: Any, modes: set[str]) -> Any:
    """float64 -> float32 in the rounding mode that is named."""
    near = value.astype(np.float32)
    back = near.astype(np.float64)
    low = np.where(back > value, np.nextafter(near, np.float32(-np.inf)), near)
    high = np.where(back < value, np.nextafter(near, np.float32(np.inf)), near)
    if "rm" in modes:
        return low
    if "rp" in modes:
        return high
    return np.where(value < 0, high, low) if "rz" in modes else near


def _float_to_float(to: str, modes: set[str]) -> Any:
    mode = "rz" if "rz" in modes else "rn"
    integral = next((_ROUND[m] for m in modes if m in _ROUND), None)

    def function(value: Any) -> Any:
        if integral is not None:
            value = integral(value)
        if "sat" in modes:
            value = np.nan_to_num(np.clip(value, 0, 1))
        if "relu" in modes:
            value = np.maximum(value, value.dtype.type(0))
        if to == "bf16":
            return f32_to_bf16(value, mode)
        if to == "f16":
            return f32_to_f16(value, mode)
        if to == "tf32":
            return round_tf32(value)
        if to == "f32":
            return narrowed(value, modes) if value.dtype == np.float64 else value
        return value.astype(np.float64)

    return function


def _float_to_integer(to: str, modes: set[str]) -> Any:
    """Rounds, then clamps to the range of the integer; NaN becomes 0."""
    integral = next((_ROUND[m] for m in modes if m in _ROUND), np.rint)
    dtype = DTYPES[to]
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max

    def function(value: Any) -> Any:
        value = integral(np.asarray(value, np.float64))
        safe = np.where(np.isnan(value) | (value >= high) | (value <= low), 0, value)
        result = safe.astype(dtype)
        result = np.where(value >= high, dtype(high), result)
        return np.where(value <= low, dtype(low), result)

    return function


def _two_halves(ops: Operands, found: Instruction, kind: str, modes: set[str]) -> Any:
    """Two float32 as a pair of halves; the first operand becomes the upper one."""
    mode = "rz" if "rz" in modes else "rn"
    write = ops.write(found.operands[0], "b32")
    if found.type == "f32":
        high, low = (ops.read(operand, "f32") for operand in found.operands[1:3])

        def run(wave: Any, gang: Gang) -> None:
            halves = [low(wave, gang), high(wave, gang)]
            if "relu" in modes:
                halves = [np.maximum(half, np.float32(0)) for half in halves]
            write(wave, gang, pack(halves[0], halves[1], kind, mode))

        return run
    read, other = ops.read(found.operands[1], "b32"), found.type[:-2]
    return lambda wave, gang: write(wave, gang, pack(*unpack(read(wave, gang), other), kind, mode))


_WINDOWS = {"shared": SHARED_BASE, "local": LOCAL_BASE, "param": PARAM_BASE}


@instruction("cvta")
def cvta(ops: Operands, found: Instruction) -> Any:
    """Addresses of a space <-> generic ones."""
    type_ = found.type
    space = next(p for p in found.parts[1:] if p != "to").split("::")[0]
    base = np.uint64(_WINDOWS.get(space, 0))
    read, write = ops.read(found.operands[1], type_), ops.write(found.operands[0], type_)
    if type_ == "u32":
        return lambda wave, gang: write(wave, gang, read(wave, gang))
    if "to" in found.parts:
        return lambda wave, gang: write(wave, gang, read(wave, gang) - base)
    return lambda wave, gang: write(wave, gang, read(wave, gang) + base)


@instruction("isspacep")
def isspacep(ops: Operands, found: Instruction) -> Any:
    space = found.parts[1].split("::")[0]
    read, write = ops.read(found.operands[1], "u64"), ops.write(found.operands[0], "pred")
    start = _WINDOWS.get(space, 0)
    later = [base for base in _WINDOWS.values() if base > start]
    end = min(later) if later else 1 << 62

    def run(wave: Any, gang: Gang) -> None:
        address = read(wave, gang)
        write(wave, gang, (address >= np.uint64(start)) & (address < np.uint64(end)))

    return run
