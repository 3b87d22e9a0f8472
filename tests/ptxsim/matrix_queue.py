"""wgmma: products that run beside the warp until wait_group.

They are computed when they are issued; until they are waited for, their accumulators and the
registers of A may not be touched, and nobody may write the shared memory that they read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import RaceError
from .registers import Gang
from .shadow import COLLECTIVE

if TYPE_CHECKING:
    from .wave import Wave


@dataclass
class _Reading:
    """Shared memory that products read: granules [warps, n], and the warps' groups."""

    rows: np.ndarray
    touched: np.ndarray
    group: np.ndarray


class MatrixQueue:
    def __init__(self, wave: Wave) -> None:
        self.wave = wave
        rows = wave.rows
        self.committed = np.zeros(rows, np.int64)
        self.waited = np.zeros(rows, np.int64)
        self.issued = np.zeros(rows, np.int64)  # the newest group that has a product in it
        self.fences = np.ones(rows, np.int64)
        self.busy: dict[int, np.ndarray] = {}  # register -> group of its newest product
        self.sums: dict[int, np.ndarray] = {}  # the same of those that a product adds to
        self.written: dict[int, np.ndarray] = {}  # register -> fences before its last write
        self.reading: list[_Reading] = []

    # -- registers -------------------------------------------------------------------------------

    def check_register(self, gang: Gang, number: int, name: str) -> None:
        """No other instruction may touch a register of a product that still runs."""
        self._check(self.busy, gang, number, name)

    def check_operand(self, gang: Gang, number: int, name: str) -> None:
        """A product may read what another one still reads, but not what it adds to."""
        self._check(self.sums, gang, number, name)

    def _check(self, busy: dict[int, np.ndarray], gang: Gang, number: int, name: str) -> None:
        group = busy.get(number)
        if group is None:
            return
        running = (group[gang.rows] > self.waited[gang.rows])[:, None] & gang.full_mask
        if running.any():
            row = int(gang.rows[running.any(1)][0])
            raise RaceError(
                f"register {name} of {self.wave.describe_agent(row)} is touched before "
                "wgmma.wait_group says that the product has ended"
            )

    def note_write(self, gang: Gang, number: int) -> None:
        """Another instruction wrote a register that products use."""
        at = self.written.setdefault(number, np.zeros(self.wave.rows, np.int64))
        at[gang.rows] = self.fences[gang.rows]

    def use(self, gang: Gang, sums: list[int], operands: list[int]) -> None:
        """A product takes these registers; writes to them have to lie before a wgmma.fence."""
        group = self.committed[gang.rows] + 1
        for number in sums:
            self.sums.setdefault(number, np.zeros(self.wave.rows, np.int64))[gang.rows] = group
        for number in (*sums, *operands):
            written = self.written.get(number)
            if written is not None and (written[gang.rows] == self.fences[gang.rows]).any():
                raise RaceError(
                    f"no wgmma.fence between a write of register "
                    f"{self.wave.register_name(number)} and a product that uses it"
                )
            busy = self.busy.setdefault(number, np.zeros(self.wave.rows, np.int64))
            busy[gang.rows] = group
        self.issued[gang.rows] = group
        self.wave.wgmma_pending = 1

    def fence(self, gang: Gang) -> None:
        self.fences[gang.rows] += 1

    # -- shared memory ---------------------------------------------------------------------------

    def read_shared(self, gang: Gang, units: np.ndarray) -> None:
        """Checks and remembers reads of 16-byte units [warps, n] (offsets) by every warp."""
        wave, shadow = self.wave, self.wave.shared_shadow
        rows = np.repeat(gang.rows, units.shape[1])
        touched = shadow.granules(units.reshape(-1), 16)
        shadow.read(wave, rows, np.full(len(rows), COLLECTIVE), touched, fenced=True)
        shadow.mark_reading(rows, touched)
        group = np.repeat(self.committed[gang.rows] + 1, units.shape[1])
        self.reading.append(_Reading(rows, touched, group))

    def commit(self, gang: Gang) -> None:
        self.committed[gang.rows] += 1

    def wait(self, gang: Gang, newest: int) -> None:
        """All but the newest groups have ended: their registers and memory are free again."""
        self.waited[gang.rows] = np.maximum(
            self.waited[gang.rows], self.committed[gang.rows] - newest
        )
        self.wave.wgmma_pending = int((self.issued > self.waited).any())
        shadow, left = self.wave.shared_shadow, []
        for reading in self.reading:
            over = reading.group <= self.waited[reading.rows]
            if over.any():
                rows = reading.rows[over]
                shadow.remember_read(rows, np.full(len(rows), COLLECTIVE), reading.touched[over])
            if not over.all():
                kept = ~over
                left.append(
                    _Reading(reading.rows[kept], reading.touched[kept], reading.group[kept])
                )
        for reading in left:
            shadow.mark_reading(reading.rows, reading.touched)
        self.reading = left
