"""Bulk copies (TMA): loads that report to an mbarrier, stores and reductions in bulk groups.

A load is pending from its issue until the engine performs it, which the schedule decides; without a
seed that is as late as possible. A store reads its source at any time until it is waited for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import AccessError, RaceError
from .registers import Gang
from .tensor_map import TensorMap, swizzled

if TYPE_CHECKING:
    from .wave import Wave

_UNIT = 16


@dataclass
class Tile:
    """One copy: 16-byte units of shared memory, and the elements of global memory."""

    units: np.ndarray  # offsets into the shared memory of all blocks
    address: np.ndarray
    inside: np.ndarray
    element: int

    @property
    def size(self) -> int:
        return len(self.units) * _UNIT


@dataclass
class _Thread:
    """The bulk groups of one thread: reads of shared memory that may still go on."""

    open: list[np.ndarray] = field(default_factory=list)
    groups: deque[list[np.ndarray]] = field(default_factory=deque)


class BulkEngine:
    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        self.queue: list[tuple[int, Tile, np.ndarray, int, int]] = []
        self.threads: dict[tuple[int, int], _Thread] = {}

    def tensor_tile(self, row: int, map_: TensorMap, start: list[int], shared: int) -> Tile:
        """The box at `start`, and where its swizzled rows lie from `shared` on."""
        if shared % 128:
            raise AccessError(f"misaligned: the box at shared address {shared}, not at 128 bytes")
        address, inside = map_.offsets(start)
        units = swizzled(shared + np.arange(0, map_.box_bytes, _UNIT), map_.swizzle)
        return Tile(self.place(row, units), address, inside, map_.element_bytes)

    def linear_tile(self, row: int, address: int, shared: int, size: int) -> Tile:
        if size % _UNIT or address % _UNIT or shared % _UNIT:
            raise AccessError(f"misaligned: a bulk copy of {size} bytes, not in units of 16")
        units = self.place(row, np.arange(shared, shared + size, _UNIT))
        elements = np.arange(address, address + size, _UNIT)
        return Tile(units, elements, np.ones(len(elements), np.bool_), _UNIT)

    def place(self, row: int, units: np.ndarray) -> np.ndarray:
        block = np.full(len(units), row % self.wave.blocks)
        return self.wave.shared.offsets(units, block, _UNIT)

    def global_bytes(self, row: int, lane: int, tile: Tile) -> np.ndarray:
        """Offsets of the elements that exist, checked as reads of the asynchronous proxy."""
        wave, used = self.wave, tile.address[tile.inside]
        offset = wave.memory.offsets(used, tile.element)
        shadow = wave.global_shadow
        rows = np.full(len(offset), row)
        touched = shadow.granules(offset, tile.element)
        shadow.read(wave, rows, np.full(len(offset), lane), touched, fenced=True)
        return offset

    def load(self, row: int, lane: int, tile: Tile, barrier: int) -> None:
        """Issues a load; its bytes count for the mbarrier at shared address `barrier`."""
        wave = self.wave
        block = row % wave.blocks
        wave.mbarriers.at(block, barrier)
        source = self.global_bytes(row, lane, tile)
        data = np.zeros((len(tile.address), tile.element), np.uint8)
        cells = wave.memory.bytes.reshape(-1, tile.element)
        data[tile.inside] = cells[source // tile.element]
        rows, touched = np.full(len(tile.units), row), self.touched(tile)
        wave.shared_shadow.write(wave, rows, np.full(len(rows), lane), touched)
        wave.shared_shadow.mark_pending(rows, touched)
        self.queue.append((row, tile, data.reshape(-1, _UNIT), block, barrier))

    def touched(self, tile: Tile) -> np.ndarray:
        return self.wave.shared_shadow.granules(tile.units, _UNIT)

    def step(self) -> bool:
        """Performs loads that have been issued: all, or with a seed some of them, in any order.

        False if there are none.
        """
        random, loads = self.wave.random, self.queue
        if not loads:
            return False
        self.queue = []
        if random is not None:
            order = random.permutation(len(loads))
            some = int(random.integers(1, len(loads) + 1))
            self.queue = [loads[n] for n in order[some:]]
            loads = [loads[n] for n in order[:some]]
        for load in loads:
            self.perform(*load)
        return True

    def perform(self, row: int, tile: Tile, data: np.ndarray, block: int, barrier: int) -> None:
        """The bytes arrive and are counted."""
        wave = self.wave
        wave.shared.bytes.reshape(-1, _UNIT)[tile.units // _UNIT] = data
        slot = wave.mbarriers.at(block, barrier).slot
        clock, agent = wave.clocks.engine_step(block, slot)
        wave.shared_shadow.stamp[self.touched(tile)] = agent << 32 | clock
        seen = np.zeros(wave.clocks.agents, np.int64)
        seen[agent] = clock
        wave.mbarriers.complete(block, barrier, tile.size, seen)

    def drain(self) -> None:
        """All threads have left: a load that nobody waited for is a bug of its own."""
        if self.queue:
            row = self.queue[0][0]
            raise RaceError(f"{self.wave.describe_agent(row)} left before its bulk load arrived")

    def store(self, row: int, lane: int, tile: Tile, add: Any = None) -> None:
        """Issues a store, or with add (a function of the old and new bytes) a reduction."""
        wave = self.wave
        rows, lanes = np.full(len(tile.units), row), np.full(len(tile.units), lane)
        touched = self.touched(tile)
        wave.shared_shadow.read(wave, rows, lanes, touched, fenced=True)
        wave.shared_shadow.mark_reading(rows, touched)
        data = wave.shared.bytes.reshape(-1, _UNIT)[tile.units // _UNIT]
        data = data.reshape(-1, tile.element)[tile.inside]
        offset = wave.memory.offsets(tile.address[tile.inside], tile.element)
        shadow = wave.global_shadow
        rows, lanes = np.full(len(offset), row), np.full(len(offset), lane)
        granules = shadow.granules(offset, tile.element)
        shadow.write(wave, rows, lanes, granules, atomic=add is not None)
        cells, index = wave.memory.bytes.reshape(-1, tile.element), offset // tile.element
        cells[index] = data if add is None else add(cells[index], data)
        self.threads.setdefault((row, lane), _Thread()).open.append(touched)

    def commit(self, gang: Gang) -> None:
        for row, lane in zip(*gang.flat(), strict=True):
            thread = self.threads.get((int(row), int(lane)))
            if thread is not None:
                thread.groups.append(thread.open)
                thread.open = []

    def wait(self, gang: Gang, newest: int) -> None:
        """Waits for all but the newest groups of every thread."""
        for row, lane in zip(*gang.flat(), strict=True):
            thread = self.threads.get((int(row), int(lane)))
            while thread is not None and len(thread.groups) > newest:
                for touched in thread.groups.popleft():
                    rows, lanes = np.full(len(touched), row), np.full(len(touched), lane)
                    self.wave.shared_shadow.remember_read(rows, lanes, touched)
                for touched in [t for group in thread.groups for t in group] + thread.open:
                    self.wave.shared_shadow.mark_reading(np.full(len(touched), row), touched)

    def leave(self, gang: Gang) -> None:
        """Shared memory goes with the block: stores out of it must have been waited for."""
        for (row, lane), thread in self.threads.items():
            if (thread.open or thread.groups) and gang.full_mask[gang.rows == row, lane].any():
                raise RaceError(
                    f"{self.wave.describe_thread(row, lane)} leaves before its bulk stores have "
                    "read their source"
                )
