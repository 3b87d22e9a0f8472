"""exit, fences, hints and whatever else moves no data."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import SimulationError, UnknownInstructionError
from ..parse import Instruction
from ..registers import Gang, Operands
from .registry import instruction


@instruction("exit", "ret")
def leave(ops: Operands, found: Instruction) -> Any:
    return lambda wave, gang: wave.leave(gang)


@instruction("call")
def call(ops: Operands, found: Instruction) -> Any:
    """Functions with a body are gone; what is left is printf, assert and pointers."""

    def run(wave: Any, gang: Gang) -> None:
        raise SimulationError(f"a call of a function that has no body here: {found.text}")

    return run


@instruction("trap")
def trap(ops: Operands, found: Instruction) -> Any:
    def run(wave: Any, gang: Gang) -> None:
        raise SimulationError("the kernel trapped")

    return run


@instruction("brx")
def brx(ops: Operands, found: Instruction) -> Any:
    """A jump by a table; lanes may go different ways."""
    index = ops.read(found.operands[0], "u32")
    targets = np.array(found.targets)

    def run(wave: Any, gang: Gang) -> Any:
        chosen = gang.pick(index(wave, gang))
        if (chosen >= len(targets)).any():
            raise SimulationError("brx.idx beyond its table")
        rows, lanes = gang.flat()
        return wave.redirect(rows, lanes, targets[chosen])

    return run


@instruction("fence", "membar")
def fence(ops: Operands, found: Instruction) -> Any:
    parts = found.parts
    if "proxy" in parts:
        if not any(part.split("::")[0] in ("async", "alias", "tensormap") for part in parts):
            raise UnknownInstructionError(".".join(parts))
        if any(part.startswith("async") for part in parts):
            return lambda wave, gang: wave.clocks.fence_proxy(gang.rows)
        return lambda wave, gang: None
    if "mbarrier_init" in parts:
        return lambda wave, gang: None
    return lambda wave, gang: wave.order.fence(gang)


@instruction("setmaxnreg", "griddepcontrol", "nanosleep", "pmevent", "createpolicy")
def nothing(ops: Operands, found: Instruction) -> Any:
    """No effect on results. createpolicy gives a cache hint, whose value nobody reads."""
    if found.name == "createpolicy":
        write = ops.write(found.operands[0], "b64")
        return lambda wave, gang: write(wave, gang, np.uint64(0))
    if found.name == "setmaxnreg":
        count = int(found.operands[0])
        if count % 8 or not 24 <= count <= 256:
            raise UnknownInstructionError(f"setmaxnreg {count}: a multiple of 8 from 24 to 256")
        return lambda wave, gang: wave.whole_warps(gang, "setmaxnreg") and None
    return lambda wave, gang: None
