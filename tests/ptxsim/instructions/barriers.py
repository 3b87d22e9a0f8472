"""bar, barrier and mbarrier."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import BarrierError, UnknownInstructionError
from ..parse import Instruction
from ..registers import LANES, Gang, Operands
from ..wave import YIELD
from .registry import instruction
from .warp import check_members


@instruction("bar", "barrier")
def bar(ops: Operands, found: Instruction) -> Any:
    parts = [part for part in found.parts if part not in ("cta", "aligned")]
    if "cluster" in parts:
        return _cluster(found)
    if parts[1] == "warp":
        return _warp(ops, found)
    if parts[1] == "red":
        return _vote(ops, found, parts[2])
    waits = parts[1] == "sync"
    if parts[1] not in ("sync", "arrive"):
        raise UnknownInstructionError(found.text)
    number = ops.read(found.operands[0], "u32")
    count = ops.read(found.operands[1], "u32") if len(found.operands) > 1 else None

    def run(wave: Any, gang: Gang) -> Any:
        gang = wave.whole_warps(gang, "barrier")
        rows = len(gang.rows)
        numbers = gang.spread(number(wave, gang))[:, 0]
        counts = None if count is None else gang.spread(count(wave, gang))[:, 0]
        late = wave.barriers.arrive(gang, numbers, counts, waits)
        return YIELD if late is not None and rows else None

    return run


def _cluster(found: Instruction) -> Any:
    """Clusters of one block: a barrier among its own warps would do, and orders as much."""
    raise UnknownInstructionError(f"{found.text}: clusters are not emulated")


def _warp(ops: Operands, found: Instruction) -> Any:
    members = ops.read(found.operands[0], "u32")

    def run(wave: Any, gang: Gang) -> None:
        check_members(wave, gang, members(wave, gang), "bar.warp.sync")
        wave.clocks.synchronise_lanes(gang.rows if gang.mask is None else gang.compact().rows)

    return run


def _vote(ops: Operands, found: Instruction, operation: str) -> Any:
    """barrier.red: every thread of the barrier learns a count, an and, or an or."""
    operands = list(found.operands)
    predicate = operands.pop()
    negated = predicate.startswith("!")
    read = ops.read(predicate.lstrip("!"), "pred")
    write = ops.write(operands[0], "u32" if operation == "popc" else "pred")
    number = ops.read(operands[1], "u32")
    count = ops.read(operands[2], "u32") if len(operands) > 2 else None

    def answer(wave: Any, gang: Gang, votes: np.ndarray) -> None:
        if operation == "popc":
            write(wave, gang, np.uint32(votes.sum()))
        else:
            write(wave, gang, np.bool_(votes.all() if operation == "and" else votes.any()))

    def run(wave: Any, gang: Gang) -> Any:
        gang = wave.whole_warps(gang, "barrier")
        numbers = gang.spread(number(wave, gang))[:, 0]
        counts = None if count is None else gang.spread(count(wave, gang))[:, 0]
        votes = gang.spread(read(wave, gang)) ^ negated
        late = wave.barriers.arrive(gang, numbers, counts, True, (votes, answer))
        return YIELD if late is not None else None

    return run


def barriers_of(wave: Any, gang: Gang, address: np.ndarray) -> Any:
    """(row, block, address, lanes that name it) of the mbarriers that a gang acts on."""
    address, mask = gang.spread(address), gang.full_mask
    for at, row in enumerate(gang.rows.tolist()):
        if mask[at].any():
            for where in np.unique(address[at][mask[at]]).tolist():
                yield at, row, row % wave.blocks, where, mask[at] & (address[at] == where)


def touch(wave: Any, gang: Gang, address: np.ndarray, *, creates: bool) -> None:
    """The access to the 8 bytes, for bounds and races: an mbarrier is an atomic object."""
    rows, lanes = gang.flat()
    offset = wave.shared.offsets(gang.pick(address), rows % wave.blocks, 8)
    touched = wave.shared_shadow.granules(offset, 8)
    if creates:
        wave.shared_shadow.write(wave, rows, lanes, touched)
    else:
        bad = wave.shared_shadow.unordered(rows, lanes, touched, False)
        if bad.any():
            wave.shared_shadow.complain(wave, "mbarrier use", rows, lanes, touched, bad, False)


@instruction("mbarrier")
def mbarrier(ops: Operands, found: Instruction) -> Any:
    name = found.parts[1]
    compilers = {
        "init": _init, "inval": _inval, "arrive": _arrive, "arrive_drop": None,
        "expect_tx": _expect, "complete_tx": None, "test_wait": _wait, "try_wait": _wait,
    }  # fmt: skip
    compiler = compilers.get(name)
    if compiler is None:
        raise UnknownInstructionError(found.text)
    return compiler(ops, found)


def _init(ops: Operands, found: Instruction) -> Any:
    base, offset = ops.address(found.operands[0])
    count = ops.read(found.operands[1], "u32")

    def run(wave: Any, gang: Gang) -> None:
        address = gang.spread(base(wave, gang) + offset)
        touch(wave, gang, address, creates=True)
        counts = gang.spread(count(wave, gang))
        for at, _, block, where, lanes in barriers_of(wave, gang, address):
            wave.mbarriers.init(block, where, int(counts[at][lanes][0]))

    return run


def _inval(ops: Operands, found: Instruction) -> Any:
    base, offset = ops.address(found.operands[0])

    def run(wave: Any, gang: Gang) -> None:
        for _, _, block, where, _ in barriers_of(wave, gang, base(wave, gang) + offset):
            wave.mbarriers.invalidate(block, where)

    return run


def _expect(ops: Operands, found: Instruction) -> Any:
    base, offset = ops.address(found.operands[0])
    size = ops.read(found.operands[1], "u32")

    def run(wave: Any, gang: Gang) -> None:
        address = gang.spread(base(wave, gang) + offset)
        touch(wave, gang, address, creates=False)
        sizes = gang.spread(size(wave, gang))
        for at, _, block, where, lanes in barriers_of(wave, gang, address):
            wave.mbarriers.expect(block, where, int(sizes[at][lanes].sum()))

    return run


def _arrive(ops: Operands, found: Instruction) -> Any:
    """Arrivals of all active lanes; .expect_tx adds bytes that copies will bring."""
    expects, no_complete = "expect_tx" in found.parts, "noComplete" in found.parts
    operands = list(found.operands)
    if no_complete or not operands[0].startswith(("_", "%", "[")):
        raise UnknownInstructionError(found.text)
    state = None if operands[0].startswith("[") else operands.pop(0)
    write = ops.write(state, "b64") if state not in (None, "_") else None
    base, offset = ops.address(operands[0])
    extra = ops.read(operands[1], "u32") if len(operands) > 1 else None

    def run(wave: Any, gang: Gang) -> None:
        address = gang.spread(base(wave, gang) + offset)
        touch(wave, gang, address, creates=False)
        extras = None if extra is None else gang.spread(extra(wave, gang))
        seen, fenced = wave.clocks.release(gang.rows)
        tokens = np.zeros((len(gang.rows), LANES), np.uint64)
        for at, _, block, where, lanes in barriers_of(wave, gang, address):
            count = int(lanes.sum())
            if extras is not None and expects:
                wave.mbarriers.expect(block, where, int(extras[at][lanes].sum()))
            elif extras is not None:
                count = int(extras[at][lanes].sum())
            tokens[at][lanes] = wave.mbarriers.at(block, where).phase & 1
            published = published_by(wave, gang, at, seen[at])
            wave.mbarriers.arrive(block, where, count, published[0], fenced[at], published[1])
        if write is not None:
            write(wave, gang, tokens)

    return run


def published_by(wave: Any, gang: Gang, at: int, seen: np.ndarray) -> tuple[np.ndarray, Any]:
    """The clocks that an arrival publishes: of the warp, if all of its live lanes are here."""
    row = int(gang.rows[at])
    mask = gang.full_mask[at]
    if (mask | ~wave.alive(row)).all():
        return seen, wave.clocks.lanes[row]
    return wave.clocks.release_lanes(row, np.nonzero(mask)[0])


def _wait(ops: Operands, found: Instruction) -> Any:
    """test_wait answers; try_wait may wait, which the fixed schedule always does."""
    parity = "parity" in found.parts
    write = ops.write(found.operands[0], "pred")
    base, offset = ops.address(found.operands[1])
    phase = ops.read(found.operands[2], "u32" if parity else "u64")
    tries = found.parts[1] == "try_wait"

    def run(wave: Any, gang: Gang) -> Any:
        address = gang.spread(base(wave, gang) + offset)
        touch(wave, gang, address, creates=False)
        phases = gang.spread(phase(wave, gang))
        passed = np.zeros((len(gang.rows), LANES), bool)
        for at, row, _, where, lanes in barriers_of(wave, gang, address):
            wanted = np.unique(phases[at][lanes] & phases.dtype.type(1))
            if len(wanted) > 1:
                raise BarrierError("lanes of a warp wait for different phases of one mbarrier")
            passed[at][lanes] = wave.mbarriers.passed(row, where, int(wanted[0]))
        late = gang.full_mask & ~passed
        if late.any() and tries and (wave.random is None or wave.random.integers(3) > 0):
            _sleep(wave, gang, address, phases, late)
            write(wave, gang.narrowed(passed), np.bool_(True))
            return late
        write(wave, gang, passed)
        return YIELD if late.any() else None

    return run


def _sleep(
    wave: Any, gang: Gang, address: np.ndarray, phases: np.ndarray, late: np.ndarray
) -> None:
    """Blocks the lanes whose phase is not over until their mbarrier advances."""
    for at, row, block, where, lanes in barriers_of(wave, gang.narrowed(late), address):
        parity = int(phases[at][lanes][0])

        def reason(block: int = block, where: int = where, parity: int = parity) -> str:
            state = wave.mbarriers.at(block, where).describe()
            return f"waits for the mbarrier at {where}, parity {parity}: {state}"

        wave.wait(("mbarrier", block, where), np.array([row]), lanes[None], reason)
