"""How the time is dealt out: in order of importance, each step leaving the later ones their least.

A step runs if its least time is left when its turn comes; so what an earlier step did not use may
bring back one that the plan had dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gpu_run.context import Step

RESERVE_S = 4.0  # for the report


class Share(NamedTuple):
    """What a step gets; None: it is dropped."""

    step: Step
    limit_s: float | None


def fitting(steps: Sequence[Step], left_s: float) -> int:
    """How many of the steps, from the first on, can have their least time."""
    for count, step in enumerate(steps):
        left_s -= step.least_s
        if left_s < 0:
            return count
    return len(steps)


def limit(steps: Sequence[Step], left_s: float) -> float | None:
    """The time limit of the first of `steps`, with `left_s` for all; None: it does not fit.

    What is left beyond the least times is shared among the steps that fit, by what they could use.
    """
    left_s -= RESERVE_S
    kept = steps[: fitting(steps, left_s)]
    if not kept:
        return None
    spare = left_s - sum(step.least_s for step in kept)
    usable = sum(step.most_s - step.least_s for step in kept)
    own = kept[0].most_s - kept[0].least_s
    return kept[0].least_s + (own * min(1.0, spare / usable) if usable else 0.0)


def plan(steps: Sequence[Step], seconds: float) -> list[Share]:
    """Every step's limit if each of them uses all that it may."""
    shares: list[Share] = []
    for index, step in enumerate(steps):
        dropped = shares and shares[-1].limit_s is None
        limit_s = None if dropped else limit(steps[index:], seconds)
        shares.append(Share(step, limit_s))
        seconds -= limit_s or 0.0
    return shares
