"""Shadow memory: for every granule of a space who wrote and read it last, and whether one may look.

A stamp is agent << 32 | clock of the last write. Bytes that nobody wrote, and those that an
asynchronous copy is about to write, carry clocks that no warp has seen: one comparison finds all
that is wrong with an access, and only then it is looked at what it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .clocks import Clocks
from .errors import AccessError, RaceError

if TYPE_CHECKING:
    from .wave import Wave

CLOCK = (1 << 32) - 1
UNWRITTEN = (1 << 31) - 1
PENDING = UNWRITTEN - 1
IN_FLIGHT = 1 << 60  # a read that an asynchronous operation may still do
COLLECTIVE, ATOMIC = -1, 64  # instead of a lane
_LANE_BITS = 8


class Shadow:
    """Base: writes and their checks; the two spaces remember reads differently."""

    def __init__(self, name: str, size: int, granule: int, clocks: Clocks, written: bool) -> None:
        self.name, self.granule, self.clocks = name, granule, clocks
        self.count = -(-size // granule)
        self.stamp = np.zeros(self.count, np.int64)
        if not written:
            self.stamp[:] = UNWRITTEN
        self.lane = np.zeros(self.count, np.int8)

    def granules(self, offset: np.ndarray, size: int) -> np.ndarray:
        """[accesses, granules of each] numbers of the granules that are touched."""
        first = offset // self.granule
        parts = max(1, size // self.granule)
        return first[:, None] + np.arange(parts) if parts > 1 else first[:, None]

    def unordered(
        self, rows: np.ndarray, lanes: np.ndarray, touched: np.ndarray, fenced: bool
    ) -> np.ndarray:
        """Which granules have a last write that is not ordered before an access of these rows."""
        stamp = self.stamp[touched]
        agent, clock = stamp >> 32, stamp & CLOCK
        index = rows[:, None] * self.clocks.agents + agent
        known = self.clocks.seen.reshape(-1)[index]
        if fenced:
            generic = self.clocks.fenced.reshape(-1)[index]
            known = np.where(agent >= self.clocks.rows, known, np.minimum(known, generic))
            own = (agent == rows[:, None]) & (self.lane[touched] == lanes[:, None])
            known = np.where(own, generic, known)
        bad = clock > known
        if bad.any() and not fenced:
            lane = self.lane[touched]
            own = (agent == rows[:, None]) & (lane == lanes[:, None])
            own |= self.clocks.excused(rows, agent, lane, clock)
            bad &= ~(own & (clock < PENDING))
        return bad

    def read(
        self,
        wave: Wave,
        rows: np.ndarray,
        lanes: np.ndarray,
        touched: np.ndarray,
        *,
        atomic: bool = False,
        fenced: bool = False,
    ) -> None:
        """Checks reads; `fenced` ones are those of the asynchronous proxy."""
        bad = self.unordered(rows, lanes, touched, fenced)
        if bad.any():
            if atomic:
                bad &= (self.lane[touched] != ATOMIC) | ((self.stamp[touched] & CLOCK) >= PENDING)
            if bad.any():
                self.complain(wave, "read", rows, lanes, touched, bad, fenced)
        self.remember_read(rows, lanes, touched)

    def write(
        self,
        wave: Wave,
        rows: np.ndarray,
        lanes: np.ndarray,
        touched: np.ndarray,
        *,
        atomic: bool = False,
        same: np.ndarray | None = None,
    ) -> None:
        """Checks writes; `same` are those that change nothing, which may race with writes."""
        bad = self.unordered(rows, lanes, touched, False)
        if bad.any():
            clock = self.stamp[touched] & CLOCK
            bad &= clock != UNWRITTEN
            if same is not None:
                bad &= ~same[:, None] | (clock == PENDING)
            if atomic:
                bad &= self.lane[touched] != ATOMIC
            if bad.any():
                self.complain(wave, "write", rows, lanes, touched, bad, False)
        if not atomic:
            self.check_reads_before(wave, rows, lanes, touched)
        self.mark(rows, lanes if not atomic else np.full(len(rows), ATOMIC), touched)

    def mark(self, rows: np.ndarray, lanes: np.ndarray, touched: np.ndarray) -> None:
        self.stamp[touched] = ((rows << 32) | self.clocks.now[rows])[:, None]
        self.lane[touched] = lanes[:, None]

    def mark_pending(self, rows: np.ndarray, touched: np.ndarray) -> None:
        """An asynchronous copy issued by these warps may write at any time from now on."""
        self.stamp[touched] = ((rows << 32) | PENDING)[:, None]

    def complain(
        self,
        wave: Wave,
        what: str,
        rows: np.ndarray,
        lanes: np.ndarray,
        touched: np.ndarray,
        bad: np.ndarray,
        fenced: bool,
    ) -> None:
        thread, part = (int(x[0]) for x in np.nonzero(bad))
        granule = int(touched[thread, part])
        stamp = int(self.stamp[granule])
        agent, clock = stamp >> 32, stamp & CLOCK
        place = f"{self.name} {wave.describe_offset(self, granule * self.granule)}"
        who = wave.describe_thread(int(rows[thread]), int(lanes[thread]))
        count = int(bad.any(1).sum())
        if clock == UNWRITTEN:
            raise AccessError(f"uninitialised: {what} of {place} by {who} ({count} threads)")
        if clock == PENDING:
            raise RaceError(
                f"{what} of {place} by {who} while an asynchronous copy into it, issued by "
                f"{wave.describe_agent(agent)}, has not been waited for ({count} threads)"
            )
        seen, covered = (
            int(table[rows[thread], agent]) for table in (self.clocks.seen, self.clocks.fenced)
        )
        if fenced and clock > covered and (clock <= seen or agent == rows[thread]):
            raise RaceError(
                f"no fence.proxy.async between the write of {place} by "
                f"{wave.describe_agent(agent)} and the asynchronous {what} by {who}"
            )
        raise RaceError(
            f"{what} of {place} by {who} is unordered with a write by "
            f"{wave.describe_agent(agent)} lane {int(self.lane[granule])} ({count} threads)"
        )

    def remember_read(self, rows: np.ndarray, lanes: np.ndarray, touched: np.ndarray) -> None:
        raise NotImplementedError

    def check_reads_before(
        self, wave: Wave, rows: np.ndarray, lanes: np.ndarray, touched: np.ndarray
    ) -> None:
        raise NotImplementedError

    def complain_of_read(
        self, wave: Wave, row: int, lane: int, granule: int, reader: str, flying: bool
    ) -> None:
        place = f"{self.name} {wave.describe_offset(self, granule * self.granule)}"
        state = "an asynchronous read that has not been waited for" if flying else "a read"
        raise RaceError(
            f"write of {place} by {wave.describe_thread(row, lane)} is unordered with {state} by "
            f"{reader}"
        )


class SharedShadow(Shadow):
    """Shared memory: the last read of every warp of the block."""

    def __init__(self, size: int, granule: int, clocks: Clocks) -> None:
        super().__init__("shared", size, granule, clocks, False)
        self.warps = clocks.rows // clocks.blocks
        self.reads = np.zeros((self.warps, self.count), np.int64)

    def remember_read(self, rows: np.ndarray, lanes: np.ndarray, touched: np.ndarray) -> None:
        value = (self.clocks.now[rows] << _LANE_BITS) | (lanes + 1)
        warp = rows // self.clocks.blocks
        self.reads[warp[:, None], touched] = value[:, None]

    def mark_reading(self, rows: np.ndarray, touched: np.ndarray) -> None:
        """Reads that go on until `remember_read` says that they are over."""
        self.reads[(rows // self.clocks.blocks)[:, None], touched] = IN_FLIGHT

    def check_reads_before(
        self, wave: Wave, rows: np.ndarray, lanes: np.ndarray, touched: np.ndarray
    ) -> None:
        blocks, block = self.clocks.blocks, rows % self.clocks.blocks
        for warp in range(self.warps):
            last = self.reads[warp][touched]
            reader = warp * blocks + block
            bad = (last >> _LANE_BITS) > self.clocks.seen[rows, reader][:, None]
            if bad.any():
                lane = (last & 255) - 1
                own = (reader == rows)[:, None] & (lane == lanes[:, None])
                readers = np.broadcast_to(reader[:, None], last.shape)
                own |= self.clocks.excused(rows, readers, lane, last >> _LANE_BITS)
                bad &= ~own | (last >= IN_FLIGHT)
            if bad.any():
                thread, part = (int(x[0]) for x in np.nonzero(bad))
                name = wave.describe_agent(int(reader[thread]))
                flying = bool(last[thread, part] >= IN_FLIGHT)
                granule = int(touched[thread, part])
                row, lane = int(rows[thread]), int(lanes[thread])
                self.complain_of_read(wave, row, lane, granule, name, flying)


class GlobalShadow(Shadow):
    """Global memory: the last two reads by different warps."""

    def __init__(self, size: int, granule: int, clocks: Clocks) -> None:
        super().__init__("global", size, granule, clocks, True)
        self.last = np.zeros((2, self.count), np.int64)

    def forget(self, ranges: list[tuple[int, int]]) -> None:
        """These bytes nobody has written yet."""
        for start, stop in ranges:
            self.stamp[start // self.granule : -(-stop // self.granule)] = UNWRITTEN

    def next_wave(self, clocks: Clocks) -> None:
        """Other blocks come: what was done so far was done by blocks that they do not know."""
        for stamps in (self.stamp, *self.last):
            known = stamps & CLOCK
            stamps[(known > 0) & (known < PENDING)] = (clocks.departed << 32) | 1
        self.clocks = clocks

    def remember_read(self, rows: np.ndarray, lanes: np.ndarray, touched: np.ndarray) -> None:
        mine = np.broadcast_to(((rows << 32) | self.clocks.now[rows])[:, None], touched.shape)
        before = self.last[0][touched]
        other = ((before ^ mine) >> 32) != 0
        self.last[1][touched[other]] = before[other]
        self.last[0][touched] = mine

    def check_reads_before(
        self, wave: Wave, rows: np.ndarray, lanes: np.ndarray, touched: np.ndarray
    ) -> None:
        for history in self.last:
            stamp = history[touched]
            reader, clock = stamp >> 32, stamp & CLOCK
            known = self.clocks.seen.reshape(-1)[rows[:, None] * self.clocks.agents + reader]
            bad = (clock > known) & (reader != rows[:, None])
            if bad.any():
                thread, part = (int(x[0]) for x in np.nonzero(bad))
                name = wave.describe_agent(int(reader[thread, part]))
                row, lane = int(rows[thread]), int(lanes[thread])
                granule = int(touched[thread, part])
                self.complain_of_read(wave, row, lane, granule, name, False)
