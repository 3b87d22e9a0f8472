"""Vector clocks: which accesses of which warp are ordered before what a warp does now.

Agents are the resident warps (rows), behind them the bulk copies of every block, those of each
mbarrier as one, and the blocks that have left already, as one. `seen[r, a]` is the latest clock of
agent a whose accesses are ordered before those of warp r now; `fenced[r, a]` the latest whose
generic writes the asynchronous proxy may read as well. A warp's own lanes are unordered since its
last warp-wide synchronisation: seen[r, r] is the clock of that.
"""

from __future__ import annotations

import numpy as np


class Clocks:
    def __init__(self, rows: int, blocks: int, slots: int) -> None:
        self.rows, self.blocks, self.slots = rows, blocks, slots
        self.departed = rows + blocks * slots
        self.agents = self.departed + 1
        self.now = np.ones(rows, np.int64)
        self.engine = np.zeros(blocks * slots, np.int64)
        self.seen = np.zeros((rows, self.agents), np.int64)
        self.fenced = np.zeros((rows, self.agents), np.int64)

    def release(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What these warps publish; their later accesses are not part of it."""
        seen = self.seen[rows]
        seen[np.arange(len(rows)), rows] = self.now[rows]
        fenced = self.fenced[rows].copy()
        self.now[rows] += 1
        return seen, fenced

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
