"""Who runs next. Without a seed: the gang at the lowest address, which lets paths meet again.

With a seed everything is drawn at random: the gang, how many of its warps, for how long they run,
and when copies arrive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import DeadlockError
from .registers import Gang
from .wave import DONE

if TYPE_CHECKING:
    from .wave import Wave

_TURN = 4000  # steps after which somebody else may go on, so that a loop that polls ends


def execute(wave: Wave, step_limit: int) -> None:
    """Runs the resident blocks until every thread has left."""
    turn = 0
    while True:
        standing = np.where(wave.blocked, DONE, wave.pc)
        first = standing.min(1)
        if not (first < DONE).any():
            if (wave.pc >= DONE).all():
                wave.engine.drain()
                return
            if wave.engine.step():
                continue
            raise DeadlockError(f"deadlock:\n{describe(wave)}")
        if wave.random is not None and wave.random.integers(4) == 0:
            wave.engine.step()
        pc, rows, quota = choose(wave, first, turn)
        mask = standing[rows] == pc
        rest = standing.copy()
        rest[rows] = np.where(mask, DONE, standing[rows])
        stops = set(np.unique(rest).tolist())
        ceiling = int(rest[rows].min())
        finished = wave.run(Gang.of(rows, mask), pc, stops, ceiling, quota)
        turn = 0 if finished else turn + 1
        if turn:
            wave.engine.step()
        if wave.steps > step_limit:
            raise DeadlockError(f"no end after {wave.steps} steps:\n{describe(wave)}")


def choose(wave: Wave, first: np.ndarray, turn: int) -> tuple[int, np.ndarray, int]:
    """An address, the warps that go on from there, and for how many steps."""
    places = np.unique(first[first < DONE])
    random = wave.random
    if random is None:
        pc = int(places[turn % len(places)])
        return pc, np.nonzero(first == pc)[0], _TURN
    lowest = turn == 0 and random.integers(4) > 0
    pc = int(places[0] if lowest else random.choice(places))
    rows = np.nonzero(first == pc)[0]
    if len(rows) > 1 and random.integers(6) == 0:
        rows = np.sort(random.choice(rows, random.integers(1, len(rows)), replace=False))
    return pc, rows, int(random.choice((40, 400, _TURN, _TURN)))


def describe(wave: Wave) -> str:
    """Where every warp stands that has not left."""
    lines = []
    for row in range(wave.rows):
        for pc in np.unique(wave.pc[row][wave.pc[row] < DONE]).tolist():
            lanes = int((wave.pc[row] == pc).sum())
            at = wave.program.kernel.instructions[max(0, pc)]
            blocked = bool(wave.blocked[row][wave.pc[row] == pc].any())
            why = wave.reasons[row]() if blocked else "runs"
            lines.append(f"  {wave.describe_agent(row)} ({lanes} lanes) {why}; next {at.where()}")
    shown = lines[:40]
    if len(lines) > len(shown):
        shown.append(f"  and {len(lines) - len(shown)} more")
    return "\n".join(shown)
