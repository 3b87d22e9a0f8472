"""Learning rates as shares of the highest one; functions of the step, without a state."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int, float], float]


def constant(step: int, steps: int, warmup: int, final_ratio: float) -> float:
    """Linear warm-up, then 1."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def cosine(step: int, steps: int, warmup: int, final_ratio: float) -> float:
    """Linear warm-up, then half a cosine down to `final_ratio` (Loshchilov and Hutter 2017)."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def inverse_sqrt(step: int, steps: int, warmup: int, final_ratio: float) -> float:
    """Linear warm-up, then falling with 1 / sqrt(step) (Vaswani et al. 2017, section 5.3).

    With `vaswani_learning_rate` as the highest rate this is the paper's equation 3.
    """
    peak, number = max(1, warmup), step + 1
    return min(number / peak, math.sqrt(peak / number))


def vaswani_learning_rate(dim: int, warmup: int) -> float:
    """The highest rate of Vaswani et al. 2017, equation 3: (dim * warmup) ** -0.5."""
    return float((dim * warmup) ** -0.5)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "inverse_sqrt": inverse_sqrt,
}
