"""Vector clocks: which accesses of which warp are ordered before what a warp does now.

Agents are the resident warps (rows), behind them the bulk copies of every block, those of each
mbarrier as one, and the blocks that have left already, as one. `seen[r, a]` is the latest clock of
agent a whose accesses are ordered before those of warp r now; `fenced[r, a]` the latest whose
generic writes the asynchronous proxy may read as well. A warp's own lanes are unordered since its
last warp-wide synchronisation: seen[r, r] is the clock of that. `lanes[r]` are single lanes of
other warps that are ahead of it, as they arrived somewhere without the rest: (row, lane) -> clock.
"""

from __future__ import annotations

import numpy as np

Lanes = dict[tuple[int, int], int]


def latest(a: Lanes, b: Lanes) -> Lanes:
    """The later clock of every lane."""
    return a | {key: max(clock, a.get(key, 0)) for key, clock in b.items()}


class Clocks:
    def __init__(self, rows: int, blocks: int, slots: int) -> None:
        self.rows, self.blocks, self.slots = rows, blocks, slots
        self.departed = rows + blocks * slots
        self.agents = self.departed + 1
        self.now = np.ones(rows, np.int64)
        self.engine = np.zeros(blocks * slots, np.int64)
        self.seen = np.zeros((rows, self.agents), np.int64)
        self.fenced = np.zeros((rows, self.agents), np.int64)
        self.lanes: list[Lanes] = [{} for _ in range(rows)]

    def release(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What these warps publish; their later accesses are not part of it."""
        seen = self.seen[rows]
        seen[np.arange(len(rows)), rows] = self.now[rows]
        fenced = self.fenced[rows].copy()
        self.now[rows] += 1
        return seen, fenced

    def release_lanes(self, row: int, lanes: np.ndarray) -> tuple[np.ndarray, Lanes]:
        """What these lanes publish without the rest of their warp; `release` came before."""
        seen = self.seen[row].copy()
        clock = int(self.now[row]) - 1
        return seen, self.lanes[row] | {(row, lane): clock for lane in lanes.tolist()}

    def acquire_lanes(self, row: int, given: Lanes) -> None:
        known = self.lanes[row]
        for key, clock in given.items():
            if clock > self.seen[row, key[0]] and clock > known.get(key, 0):
                known[key] = clock

    def excused(
        self, rows: np.ndarray, agents: np.ndarray, lanes: np.ndarray, clocks: np.ndarray
    ) -> np.ndarray:
        """Which accesses (of agents, lanes; negative: all lanes) `lanes` orders before `rows`."""
        found = np.zeros(clocks.shape, np.bool_)
        for row in np.unique(rows).tolist():
            for (writer, lane), clock in self.lanes[row].items():
                of_lane = (lanes == lane) | (lanes < 0)
                known = (agents == writer) & of_lane & (clocks <= clock)
                found |= known & (rows == row)[:, None]
        return found

    def acquire(self, rows: np.ndarray, seen: np.ndarray, fenced: np.ndarray) -> None:
        self.seen[rows] = np.maximum(self.seen[rows], seen)
        self.fenced[rows] = np.maximum(self.fenced[rows], fenced)

    def synchronise(self, rows: np.ndarray) -> None:
        """A barrier of these warps."""
        seen, fenced = self.release(rows)
        self.seen[rows] = seen.max(0)
        self.fenced[rows] = fenced.max(0)

    def synchronise_lanes(self, rows: np.ndarray) -> None:
        """A barrier among the lanes of each of these warps."""
        self.seen[rows, rows] = self.now[rows]
        self.now[rows] += 1

    def fence_proxy(self, rows: np.ndarray) -> None:
        """Generic writes ordered before now become visible to the asynchronous proxy."""
        self.fenced[rows] = np.maximum(self.fenced[rows], self.seen[rows])
        self.fenced[rows, rows] = self.now[rows]
        self.now[rows] += 1

    def engine_step(self, block: int, slot: int) -> tuple[int, int]:
        """A new clock of the copies that report to a block's mbarrier, and their agent."""
        number = block * self.slots + slot % self.slots
        self.engine[number] += 1
        return int(self.engine[number]), self.rows + number
