"""Instructions of a whole warp: shuffles, votes, reductions, elections."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import BarrierError, UnknownInstructionError
from ..parse import Instruction
from ..registers import DTYPES, LANE, LANES, Gang, Operands
from .registry import instruction

_BIT = np.uint64(1) << LANE.astype(np.uint64)


def check_members(wave: Any, gang: Gang, members: Any, what: str) -> None:
    """Every live lane of the member mask must be here, and whoever is here must be a member."""
    if gang.mask is None and np.ndim(members) == 0 and int(members) == 0xFFFFFFFF:
        return
    mask = gang.full_mask
    named = (gang.spread(members).astype(np.uint64) & _BIT).astype(bool)
    if (mask & ~named).any():
        raise BarrierError(f"{what}: a lane that is not in its own member mask")
    wanted = np.where(mask, gang.spread(members), 0).max(1).astype(np.uint64)
    absent = (wanted[:, None] & _BIT).astype(bool) & ~mask & wave.alive(gang.rows)
    absent &= mask.any(1)[:, None]
    if absent.any():
        row = int(np.nonzero(absent.any(1))[0][0])
        raise BarrierError(
            f"divergent {what}: lane {int(np.nonzero(absent[row])[0][0])} of "
            f"{wave.describe_agent(int(gang.rows[row]))} is in the member mask, but elsewhere"
        )


@instruction("shfl")
def shfl(ops: Operands, found: Instruction) -> Any:
    """Reads another lane's value; a lane outside of the segment reads its own."""
    mode = found.parts[2]
    first, *second = found.operands[0].split("|")
    write = ops.write(first, "b32")
    inside = ops.write(second[0], "pred") if second else None
    value, by, clamp, members = (ops.read(operand, "u32") for operand in found.operands[1:5])

    def run(wave: Any, gang: Gang) -> None:
        check_members(wave, gang, members(wave, gang), "shfl.sync")
        have = gang.spread(value(wave, gang))
        step = np.asarray(by(wave, gang)).astype(np.int64) & 31
        limit = np.asarray(clamp(wave, gang)).astype(np.int64)
        segment = (limit >> 8) & 31
        low = LANE & segment
        high = low | (limit & 31 & ~segment)
        if mode == "up":
            lane = LANE - step
            valid = lane >= high
        else:
            target = {"down": LANE + step, "bfly": LANE ^ step, "idx": low | (step & ~segment)}
            lane = target[mode]
            valid = lane <= high
        lane = np.broadcast_to(np.where(valid, lane, LANE), have.shape)
        if gang.mask is not None:
            there = np.take_along_axis(gang.mask, lane, 1) | ~gang.mask
            if not there.all():
                raise BarrierError("shfl.sync reads a lane that does not take part")
        write(wave, gang, np.take_along_axis(have, lane, 1))
        if inside is not None:
            inside(wave, gang, np.broadcast_to(valid, have.shape))

    return run


@instruction("vote")
def vote(ops: Operands, found: Instruction) -> Any:
    mode, operand = found.parts[2], found.operands[1]
    negated = operand.startswith("!")
    read = ops.read(operand.lstrip("!"), "pred")
    members = ops.read(found.operands[2], "u32")
    write = ops.write(found.operands[0], "u32" if mode == "ballot" else "pred")

    def run(wave: Any, gang: Gang) -> None:
        check_members(wave, gang, members(wave, gang), "vote.sync")
        value = gang.spread(read(wave, gang)) ^ negated
        mask = gang.full_mask
        yes, no = (value & mask).any(1), (~value & mask).any(1)
        if mode == "ballot":
            bits = ((value & mask) * _BIT).sum(1, dtype=np.uint64).astype(np.uint32)
            write(wave, gang, np.broadcast_to(bits[:, None], mask.shape))
            return
        result = {"any": yes, "all": ~no, "uni": ~(yes & no)}[mode]
        write(wave, gang, np.broadcast_to(result[:, None], mask.shape))

    return run


@instruction("match")
def match(ops: Operands, found: Instruction) -> Any:
    """Which lanes hold the same value; .all: whether every lane does."""
    mode, bits = found.parts[1], found.type
    first, *second = found.operands[0].split("|")
    write = ops.write(first, "u32")
    same_all = ops.write(second[0], "pred") if second else None
    read, members = ops.read(found.operands[1], bits), ops.read(found.operands[2], "u32")

    def run(wave: Any, gang: Gang) -> None:
        check_members(wave, gang, members(wave, gang), "match.sync")
        value, mask = gang.spread(read(wave, gang)), gang.full_mask
        equal = (value[:, :, None] == value[:, None, :]) & mask[:, None, :]
        lanes = (equal * _BIT).sum(2, dtype=np.uint64).astype(np.uint32)
        if mode == "any":
            write(wave, gang, lanes)
            return
        everyone = (mask * _BIT).sum(1, dtype=np.uint64).astype(np.uint32)[:, None]
        agree = np.where(mask, lanes == everyone, True).all(1)[:, None]
        write(wave, gang, np.broadcast_to(np.where(agree, everyone, np.uint32(0)), mask.shape))
        if same_all is not None:
            same_all(wave, gang, np.broadcast_to(agree, mask.shape))

    return run


_REDUCE = {
    "add": np.add, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


@instruction("redux")
def redux(ops: Operands, found: Instruction) -> Any:
    name, type_ = found.parts[2], found.type
    if type_ == "f32":
        raise UnknownInstructionError("redux.sync of f32")
    read, members = ops.read(found.operands[1], type_), ops.read(found.operands[2], "u32")
    write = ops.write(found.operands[0], type_)
    dtype = DTYPES[type_]
    start = {
        "add": 0, "or": 0, "xor": 0, "and": -1,
        "min": np.iinfo(dtype).max, "max": np.iinfo(dtype).min,
    }[name]  # fmt: skip

    def run(wave: Any, gang: Gang) -> None:
        check_members(wave, gang, members(wave, gang), "redux.sync")
        neutral = np.array(start).astype(dtype)
        value = np.where(gang.full_mask, gang.spread(read(wave, gang)), neutral)
        result = _REDUCE[name].reduce(value, 1, dtype=dtype)
        write(wave, gang, np.broadcast_to(result[:, None], value.shape))

    return run


@instruction("activemask")
def activemask(ops: Operands, found: Instruction) -> Any:
    write = ops.write(found.operands[0], "u32")

    def run(wave: Any, gang: Gang) -> None:
        bits = (gang.full_mask * _BIT).sum(1, dtype=np.uint64).astype(np.uint32)
        write(wave, gang, np.broadcast_to(bits[:, None], (len(gang.rows), LANES)))

    return run


@instruction("elect")
def elect(ops: Operands, found: Instruction) -> Any:
    """One lane of the member mask is told that it is the one."""
    first, chosen = found.operands[0].split("|")
    write, tell = ops.write(first, "u32"), ops.write(chosen, "pred")
    members = ops.read(found.operands[1], "u32")

    def run(wave: Any, gang: Gang) -> None:
        check_members(wave, gang, members(wave, gang), "elect.sync")
        leader = gang.full_mask.argmax(1)[:, None]
        write(wave, gang, np.broadcast_to(leader, (len(gang.rows), LANES)).astype(np.uint32))
        tell(wave, gang, leader == LANE)

    return run
