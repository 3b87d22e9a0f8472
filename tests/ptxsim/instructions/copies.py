"""cp.async and cp.async.bulk."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import UnknownInstructionError
from ..memory import SHARED_BASE
from ..parse import Instruction
from ..registers import Gang, Operands
from .bulk_copies import bulk
from .registry import instruction


@instruction("cp")
def cp(ops: Operands, found: Instruction) -> Any:
    if "bulk" in found.parts:
        return bulk(ops, found)
    if found.parts[1] != "async":
        raise UnknownInstructionError(found.text)
    if "commit_group" in found.parts:
        return lambda wave, gang: wave.copies.commit(gang)
    if "wait_all" in found.parts:
        return lambda wave, gang: wave.copies.wait(gang, None)
    if "wait_group" in found.parts:
        newest = int(found.operands[0], 0)
        return lambda wave, gang: wave.copies.wait(gang, newest)
    if "mbarrier" in found.parts:
        return _arrive(ops, found)
    return _copy(ops, found)


def _copy(ops: Operands, found: Instruction) -> Any:
    to, to_offset = ops.address(found.operands[0])
    source, source_offset = ops.address(found.operands[1])
    size = int(found.operands[2], 0)
    if size not in (4, 8, 16) or ("cg" in found.parts and size != 16):
        raise UnknownInstructionError(f"cp.async of {size} bytes")
    used, ignored = None, None
    if len(found.operands) > 3 and "cache_hint" not in found.operands[3]:
        type_ = ops.types.get(found.operands[3])
        if type_ == "pred":
            ignored = ops.read(found.operands[3], "pred")
        elif type_ != "b64":  # that would be a cache policy
            used = ops.read(found.operands[3], "u32")

    def run(wave: Any, gang: Gang) -> None:
        count = None if used is None else used(wave, gang)
        if ignored is not None:
            count = np.where(ignored(wave, gang), np.uint32(0), np.uint32(size))
        address = to(wave, gang) + to_offset
        address = np.where(address >= SHARED_BASE, address - SHARED_BASE, address)
        wave.copies.issue(gang, address, source(wave, gang) + source_offset, size, count)

    return run


def _arrive(ops: Operands, found: Instruction) -> Any:
    """Arrives at an mbarrier when the thread's earlier copies are there.

    Without .noinc the barrier also expects one arrival more, so that nothing changes in sum.
    """
    from .barriers import barriers_of, published_by, touch

    base, offset = ops.address(found.operands[0])
    counted = "noinc" in found.parts

    def run(wave: Any, gang: Gang) -> None:
        address = gang.spread(base(wave, gang) + offset)
        touch(wave, gang, address, creates=False)
        wave.copies.wait(gang, None)
        seen, fenced = wave.clocks.release(gang.rows)
        for at, _, block, where, lanes in barriers_of(wave, gang, address):
            count = int(lanes.sum()) if counted else 0
            published = published_by(wave, gang, at, seen[at])
            wave.mbarriers.arrive(block, where, count, published[0], fenced[at], published[1])

    return run
