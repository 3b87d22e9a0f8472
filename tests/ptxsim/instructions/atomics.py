"""atom and red, on global and shared memory, also of pairs of halves and of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import access
from ..errors import UnknownInstructionError
from ..halves import pack, to_bits, to_float, unpack
from ..parse import Instruction
from ..registers import DTYPES, Gang, Operands
from .loads import held, ordering, space_of
from .registry import instruction

_OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


def _combine(operation: str, type_: str) -> Any:
    """new = f(old, operand) on arrays of the type that memory holds."""
    plain = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
        "or": np.bitwise_or, "xor": np.bitwise_xor, "exch": lambda old, new: new,
        "inc": lambda old, top: np.where(old >= top, 0, old + 1).astype(old.dtype),
        "dec": lambda old, top: np.where((old == 0) | (old > top), top, old - 1).astype(old.dtype),
    }[operation]  # fmt: skip
    if operation == "exch":
        return plain
    if type_ in ("f16x2", "bf16x2"):
        kind = type_[:-2]

        def pairs(old: Any, new: Any) -> Any:
            (a, b), (c, d) = unpack(old, kind), unpack(new, kind)
            return pack(plain(a, c), plain(b, d), kind)

        return pairs
    if type_ in ("f16", "bf16"):
        return lambda old, new: to_bits(plain(to_float(old, type_), to_float(new, type_)), type_)
    if type_[0] == "f" and operation in ("min", "max"):
        raise UnknownInstructionError(f"atomic {operation} of {type_}")
    return plain


@instruction("atom", "red")
def atom(ops: Operands, found: Instruction) -> Any:
    operation = next(part for part in found.parts if part in _OPERATIONS)
    gives = found.name == "atom"
    target, *values = found.operands[gives : gives + 3]
    if found.type == "b128" or (len(values) > 1 and operation != "cas"):
        raise UnknownInstructionError(found.text)
    type_ = found.type
    dtype = DTYPES[held(type_)]
    base, offset = ops.address(target)
    reads = [[ops.read(name, held(type_)) for name in ops.vector(value)] for value in values]
    names = ops.vector(found.operands[0]) if gives else []
    writes = [ops.write(name, held(type_)) for name in names]
    space, order = space_of(found), ordering(found)
    combine = None if operation == "cas" else _combine(operation, type_)
    size = np.dtype(dtype).itemsize

    def run(wave: Any, gang: Gang) -> None:
        address = gang.spread(base(wave, gang) + offset)
        places = access.spaces(gang, address) if space is None else [(space, gang, address)]
        for place, part, where in places:
            wave.order.before_load(part, place, where, order)
            for number in range(len(reads[0])):
                at = where + number * size
                given = [part.pick(gang.spread(r[number](wave, gang))) if part is gang
                         else gang.spread(r[number](wave, gang))[part.full_mask]
                         for r in reads]  # fmt: skip
                old = access.update(wave, part, place, at, dtype, given, combine)
                if writes:
                    writes[number](wave, part, part.unpick(old))
            wave.order.after_store(part, place, where, order)

    return run
