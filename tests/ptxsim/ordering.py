"""Ordering by global atomics: release and acquire, or fences around relaxed accesses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .registers import Gang

if TYPE_CHECKING:
    from .wave import Wave


class Ordering:
    """What was released through each location; keyed by space and address."""

    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        shape = (wave.rows, wave.clocks.agents)
        self.fenced_at = np.zeros(shape, np.int64)  # what a warp's last fence covers
        self.heard = np.zeros(shape, np.int64)  # what the next fence of a warp will acquire
        self.locations: dict[tuple[str, int], np.ndarray] = wave.program.released
        self.used = any(
            found.name in ("membar", "fence")
            and "proxy" not in found.parts
            or {"acquire", "release", "acq_rel"} & set(found.parts)
            for found in wave.program.kernel.instructions
        )

    def fence(self, gang: Gang) -> None:
        """membar and fence: cover what came before, take in what was heard."""
        rows, clocks = gang.rows, self.wave.clocks
        clocks.seen[rows] = np.maximum(clocks.seen[rows], self.heard[rows])
        seen, _ = clocks.release(rows)
        self.fenced_at[rows] = seen

    def after_store(self, gang: Gang, space: str, address: np.ndarray, order: str) -> None:
        """A store that others may wait for."""
        if not self.used:
            return
        rows, _ = gang.flat()
        release = None
        if order in ("release", "acq_rel"):
            release, _ = self.wave.clocks.release(gang.rows)
        number = {int(row): n for n, row in enumerate(gang.rows)}
        for row, where in {(int(r), int(a)) for r, a in zip(rows, gang.pick(address), strict=True)}:
            given = self.fenced_at[row] if release is None else release[number[row]]
            key = self.key(space, row, where)
            before = self.locations.get(key)
            self.locations[key] = given if before is None else np.maximum(before, given)

    def before_load(self, gang: Gang, space: str, address: np.ndarray, order: str) -> None:
        if not self.used or not self.locations:
            return
        rows, _ = gang.flat()
        clocks = self.wave.clocks
        for row, where in {(int(r), int(a)) for r, a in zip(rows, gang.pick(address), strict=True)}:
            given = self.locations.get(self.key(space, row, where))
            if given is not None:
                self.heard[row] = np.maximum(self.heard[row], given)
                if order in ("acquire", "acq_rel"):
                    clocks.seen[row] = np.maximum(clocks.seen[row], given)

    def key(self, space: str, row: int, address: int) -> tuple[str, int]:
        block = row % self.wave.blocks
        return (space, address) if space == "global" else (f"{space} {block}", address)

    def carry_over(self) -> None:
        """The blocks leave: what they released is what a departed block did."""
        departed = self.wave.clocks.departed
        for key, given in list(self.locations.items()):
            if not key[0].startswith("global"):
                del self.locations[key]
                continue
            later = np.zeros_like(given)
            later[departed] = 1
            self.locations[key] = later
