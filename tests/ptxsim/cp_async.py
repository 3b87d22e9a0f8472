"""cp.async: copies that a thread issues, commits in groups and waits for.

The bytes move at once, but may be relied on only after the wait: until then they are pending, and
reading or writing them is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import SimulationError
from .registers import LANES, Gang

if TYPE_CHECKING:
    from .wave import Wave


@dataclass
class _Copy:
    rows: np.ndarray
    lanes: np.ndarray
    touched: np.ndarray  # [threads, granules]
    group: np.ndarray


class AsyncCopies:
    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.flying: list[_Copy] = []
        self.committed = np.zeros((wave.rows, LANES), np.int64)

    def issue(
        self, gang: Gang, to: np.ndarray, source: np.ndarray, size: int, used: np.ndarray | None
    ) -> None:
        """Copies `used` of `size` bytes from global `source` to shared `to`; the rest becomes 0."""
        wave = self.wave
        rows, lanes = gang.flat()
        offset = wave.shared.offsets(gang.pick(to), rows % wave.blocks, size)
        start = gang.pick(source)
        take = np.full(len(rows), size) if used is None else gang.pick(used).astype(np.int64)
        if (take > size).any():
            raise SimulationError(f"cp.async: {int(take.max())} source bytes for {size}")
        touched = wave.shared_shadow.granules(offset, size)
        wave.shared_shadow.write(wave, rows, lanes, touched)
        data = np.zeros((len(rows), size), np.uint8)
        for count in np.unique(take).tolist():
            if count:
                some = take == count
                data[some, :count] = self.source(rows[some], lanes[some], start[some], count, size)
        wave.shared.bytes.reshape(-1, size)[offset // size] = data
        wave.shared_shadow.mark_pending(rows, touched)
        self.flying.append(_Copy(rows, lanes, touched, self.committed[rows, lanes]))
        if wave.banks is not None:
            wave.banks.count(wave, gang, to, size)

    def source(
        self, rows: np.ndarray, lanes: np.ndarray, start: np.ndarray, count: int, align: int
    ) -> np.ndarray:
        wave = self.wave
        offset = wave.memory.offsets(start, count, align)
        shadow = wave.global_shadow
        shadow.read(wave, rows, lanes, shadow.granules(offset, count))
        if count == align:
            return wave.memory.bytes.reshape(-1, align)[offset // align]
        return wave.memory.bytes[offset[:, None] + np.arange(count)]

    def commit(self, gang: Gang) -> None:
        rows, lanes = gang.flat()
        self.committed[rows, lanes] += 1

    def wait(self, gang: Gang, newest: int | None) -> None:
        """Waits for all groups but the `newest`; None: for all copies, committed or not."""
        limit = np.full(self.committed.shape, -1)
        rows, lanes = gang.flat()
        reach = 1 << 60 if newest is None else self.committed[rows, lanes] - newest
        limit[rows, lanes] = reach
        shadow, left = self.wave.shared_shadow, []
        for copy in self.flying:
            over = copy.group < limit[copy.rows, copy.lanes]
            if over.all():
                shadow.mark(copy.rows, copy.lanes, copy.touched)
                continue
            if over.any():
                shadow.mark(copy.rows[over], copy.lanes[over], copy.touched[over])
                kept = ~over
                copy = _Copy(
                    copy.rows[kept], copy.lanes[kept], copy.touched[kept], copy.group[kept]
                )
            left.append(copy)
        self.flying = left

    def leave(self, gang: Gang) -> None:
        """Threads that leave take their copies with them."""
        if self.flying:
            self.wait(gang, None)
