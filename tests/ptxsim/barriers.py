"""Named barriers and mbarriers: who has come, who waits, and what they order."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .clocks import Lanes, latest
from .errors import BarrierError
from .registers import LANES, Gang

if TYPE_CHECKING:
    from .wave import Wave


@dataclass
class _Meeting:
    """One generation of a named barrier."""

    expected: int | None
    arrived: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    seen: list[np.ndarray] = field(default_factory=list)
    fenced: list[np.ndarray] = field(default_factory=list)
    votes: list[np.ndarray] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)

    def describe(self, number: int) -> str:
        return f"waits at barrier {number} ({len(self.arrived)} warps of it are there)"


class NamedBarriers:
    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.meetings: dict[tuple[int, int], _Meeting] = {}

    def arrive(
        self,
        gang: Gang,
        numbers: np.ndarray,
        counts: np.ndarray | None,
        waits: bool,
        vote: tuple[np.ndarray, Any] | None = None,
    ) -> np.ndarray | None:
        """Whole warps arrive; gives the warps that have to wait (bool, one a row) or None."""
        wave = self.wave
        seen, fenced = wave.clocks.release(gang.rows)
        for at, row in enumerate(gang.rows.tolist()):
            number = int(numbers[at])
            count = None if counts is None else int(counts[at])
            if not 0 <= number < 16:
                raise BarrierError(f"barrier {number} does not exist")
            if count is not None and (count % LANES or not count):
                raise BarrierError(f"barrier {number}: {count} threads are no whole warps")
            key = (row % wave.blocks, number)
            meeting = self.meetings.setdefault(key, _Meeting(count))
            if meeting.expected != count:
                raise BarrierError(
                    f"barrier {number}: {count} threads expected here, {meeting.expected} by others"
                )
            meeting.arrived.append(row)
            meeting.seen.append(seen[at])
            meeting.fenced.append(fenced[at])
            if waits:
                meeting.waiting.append(row)
            if vote is not None:
                meeting.votes.append(vote[0][at][gang.full_mask[at]])
                meeting.answers.append(Gang.of(gang.rows[at : at + 1], gang.full_mask[at : at + 1]))
            if count is not None and len(meeting.arrived) * LANES > count:
                raise BarrierError(f"barrier {number}: more arrivals than {count} threads")
        blocks = np.unique(gang.rows % wave.blocks).tolist()
        for key in [k for k in self.meetings if k[0] in blocks]:
            self.finish(key, vote[1] if vote else None)
        return self.blocked_rows(gang, waits)

    def blocked_rows(self, gang: Gang, waits: bool) -> np.ndarray | None:
        """Blocks those whose meeting is still open."""
        if not waits or not self.meetings:
            return None
        late = np.zeros(len(gang.rows), np.bool_)
        for (block, number), meeting in self.meetings.items():
            mine = np.isin(gang.rows, meeting.waiting)
            if mine.any():
                late |= mine
                rows, describe = gang.rows[mine], functools.partial(meeting.describe, number)
                self.wave.wait((block, number), rows, gang.full_mask[mine], describe)
        return late if late.any() else None

    def finish(self, key: tuple[int, int], answer: Any) -> None:
        """Opens the barrier if everybody has come."""
        wave, meeting = self.wave, self.meetings[key]
        if meeting.expected is None:
            block = np.arange(key[0], wave.rows, wave.blocks)
            expected = int(wave.alive(block).any(1).sum())
            if len(set(meeting.arrived)) < len(meeting.arrived):
                raise BarrierError(f"barrier {key[1]}: a warp arrived twice")
        else:
            expected = meeting.expected // LANES
        if len(meeting.arrived) < expected:
            return
        del self.meetings[key]
        rows = np.array(meeting.waiting, np.int64)
        if len(rows):
            seen, fenced = np.max(meeting.seen, 0), np.max(meeting.fenced, 0)
            wave.clocks.acquire(rows, seen, fenced)
            for other in meeting.arrived:
                for row in rows.tolist() if wave.clocks.lanes[other] else ():
                    wave.clocks.acquire_lanes(row, wave.clocks.lanes[other])
        if answer is not None:
            votes = np.concatenate(meeting.votes)
            for gang in meeting.answers:
                answer(wave, gang, votes)
        wave.wake(key)

    def after_exit(self, blocks: np.ndarray) -> None:
        """Barriers without a count wait for live warps only."""
        for key in [k for k, m in self.meetings.items() if k[0] in blocks and m.expected is None]:
            self.finish(key, None)


@dataclass
class MemoryBarrier:
    """One mbarrier; `bytes` are those that copies still have to bring in this phase."""

    count: int
    pending: int
    agents: int
    slot: int
    bytes: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        self.seen = self.fenced = np.zeros(self.agents, np.int64)
        self.lanes: Lanes = {}
        self.done = self.seen, self.fenced, self.lanes

    def describe(self) -> str:
        return f"phase {self.phase}, {self.pending} arrivals and {self.bytes} bytes are missing"


class MemoryBarriers:
    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.table: dict[tuple[int, int], MemoryBarrier] = {}
        self.slots: dict[int, dict[int, int]] = {}

    def init(self, block: int, address: int, count: int) -> None:
        if not 0 < count < 1 << 20:
            raise BarrierError(f"mbarrier at {address}: a count of {count}")
        slots = self.slots.setdefault(block, {})
        slot = slots.setdefault(address, len(slots))
        agents = self.wave.clocks.agents
        self.table[block, address] = MemoryBarrier(count, count, agents, slot)

    def invalidate(self, block: int, address: int) -> None:
        self.at(block, address)
        del self.table[block, address]

    def at(self, block: int, address: int) -> MemoryBarrier:
        found = self.table.get((block, address))
        if found is None:
            raise BarrierError(f"there is no mbarrier at shared address {address}")
        return found

    def arrive(
        self,
        block: int,
        address: int,
        count: int,
        seen: np.ndarray,
        fenced: np.ndarray,
        lanes: Lanes,
    ) -> None:
        """`count` arrivals that publish these clocks."""
        barrier = self.at(block, address)
        barrier.lanes = latest(barrier.lanes, lanes)
        barrier.seen = np.maximum(barrier.seen, seen)
        barrier.fenced = np.maximum(barrier.fenced, fenced)
        barrier.pending -= count
        if barrier.pending < 0:
            raise BarrierError(
                f"mbarrier at {address}: over {barrier.count} arrivals in phase {barrier.phase}"
            )
        self.advance(block, address)

    def expect(self, block: int, address: int, size: int) -> None:
        self.at(block, address).bytes += size

    def complete(self, block: int, address: int, size: int, seen: np.ndarray) -> None:
        """A copy has brought `size` bytes."""
        barrier = self.at(block, address)
        barrier.seen = np.maximum(barrier.seen, seen)
        barrier.bytes -= size
        self.advance(block, address)

    def advance(self, block: int, address: int) -> None:
        barrier = self.table[block, address]
        if barrier.pending == 0 and barrier.bytes == 0:
            barrier.phase += 1
            barrier.pending = barrier.count
            barrier.done = barrier.seen, barrier.fenced, barrier.lanes
            self.wave.wake(("mbarrier", block, address))

    def passed(self, row: int, address: int, parity: int) -> bool:
        """Whether the phase of this parity is over; then its arrivals are ordered before."""
        barrier = self.at(row % self.wave.blocks, address)
        if barrier.phase & 1 == parity:
            return False
        seen, fenced, lanes = barrier.done
        self.wave.clocks.acquire(np.array([row]), seen[None], fenced[None])
        self.wave.clocks.acquire_lanes(row, lanes)
        return True
