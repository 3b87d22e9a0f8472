"""ld and st of every space, and what they may say about caches and ordering."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import access
from ..errors import UnknownInstructionError
from ..parse import Instruction
from ..registers import DTYPES, Gang, Operands
from .registry import instruction

_SPACES = ("global", "shared", "local", "param", "const")


def space_of(found: Instruction) -> str | None:
    """The space that is named; None for generic addresses."""
    for part in found.parts[1:]:
        name = part.split("::")[0]
        if name in _SPACES and (part == name or name in ("shared", "param")):
            return name
    return None


def _space_of_argument(ops: Operands, found: Instruction, number: int) -> str:
    """Parameters of a kernel are one memory for all; those of a call every thread's own."""
    name = found.operands[number].strip("[] ").split("+")[0].strip()
    return "local" if name in ops.symbols else "param"


def held(type_: str) -> str:
    """The type that values move as: bits, as signs matter only to wider registers."""
    return {"f16": "b16", "bf16": "b16", "f16x2": "b32", "bf16x2": "b32"}.get(type_, type_)


def ordering(found: Instruction) -> str:
    """acquire, release, relaxed or weak."""
    for name in ("acquire", "release", "acq_rel", "volatile", "relaxed"):
        if name in found.parts:
            return "relaxed" if name == "volatile" else name
    return "weak"


@instruction("ld", "ldu")
def ld(ops: Operands, found: Instruction) -> Any:
    space, type_ = space_of(found), held(found.type)
    dtype = DTYPES[type_]
    if type_ == "b128":
        raise UnknownInstructionError("128-bit registers")
    writes = [ops.write(name, type_) for name in ops.vector(found.operands[0])]
    parts = len(writes)
    base, offset = ops.address(found.operands[1])
    order = ordering(found)
    space = _space_of_argument(ops, found, 1) if space == "param" else space
    if space == "param":
        return _ld_param(found, ops, writes, base, offset, dtype)
    named = "global" if space == "const" else space

    def run(wave: Any, gang: Gang) -> None:
        address = base(wave, gang) + offset
        if named is None:
            places = access.spaces(gang, address)
        else:
            places = [(named, gang, address)]
        for place, part, where in places:
            if order != "weak":
                wave.order.before_load(part, place, where, order)
            values = access.load(wave, part, place, where, dtype, parts, order != "weak")
            for number, write in enumerate(writes):
                write(wave, part, part.unpick(values[:, number]))

    return run


def _ld_param(
    found: Instruction, ops: Operands, writes: list[Any], base: Any, offset: int, dtype: Any
) -> Any:
    size = np.dtype(dtype).itemsize

    def run(wave: Any, gang: Gang) -> None:
        starts = base(wave, gang) + offset
        if starts.ndim:
            values = access.load(wave, gang, "param", starts, dtype, len(writes))
            for number, write in enumerate(writes):
                write(wave, gang, gang.unpick(values[:, number]))
            return
        for number, write in enumerate(writes):
            start = int(starts) + number * size
            write(wave, gang, wave.parameters[start : start + size].view(dtype)[0])

    return run


@instruction("st")
def st(ops: Operands, found: Instruction) -> Any:
    space, type_ = space_of(found), held(found.type)
    space = _space_of_argument(ops, found, 0) if space == "param" else space
    if type_ == "b128" or space in ("param", "const"):
        raise UnknownInstructionError(f"a store of {type_} to {space}")
    reads = [ops.read(name, type_) for name in ops.vector(found.operands[1])]
    base, offset = ops.address(found.operands[0])
    order = ordering(found)
    dtype, parts = DTYPES[type_], len(reads)

    def run(wave: Any, gang: Gang) -> None:
        address = gang.spread(base(wave, gang) + offset)
        values = np.empty((len(gang.rows), 32, parts), dtype)
        for number, read in enumerate(reads):
            values[..., number] = read(wave, gang)
        places = access.spaces(gang, address) if space is None else [(space, gang, address)]
        for place, part, where in places:
            chosen = values.reshape(-1, parts) if part.mask is None else values[part.mask]
            access.store(wave, part, place, where, chosen, order != "weak")
            if order != "weak":
                wave.order.after_store(part, place, where, order)

    return run


@instruction("prefetch", "prefetchu", "discard", "applypriority")
def prefetch(ops: Operands, found: Instruction) -> Any:
    """Hints; their addresses may lie anywhere."""
    return lambda wave, gang: None
