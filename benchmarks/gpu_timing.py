"""Interleaved timing on a GPU: by the GPU's own clock, with nothing of the inputs in its cache.

Before each sample a buffer larger than the L2 cache is overwritten. While the GPU does that, the
CPU gets ahead and queues the call, so that the events beside it see the kernels and not Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from .timing import Timing

FLUSH_BYTES = 512 * 2**20
WARM_UPS = 3

Around = Callable[[], AbstractContextManager[object]]


class Clock(Protocol):
    """What times one call."""

    def seconds(self, call: Callable[[], object]) -> float:
        """How long the call's work takes from a cold cache."""


class GpuClock:
    """CUDA events around a call, after the cache has been flushed."""

    def __init__(self) -> None:
        self._scratch = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, call: Callable[[], object]) -> float:
        self._scratch.zero_()
        self._begin.record()
        call()
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) * 1e-3


def time_interleaved_on_gpu(
    callables: Mapping[str, Callable[[], object]],
    around: Mapping[str, Around],
    clock: Clock,
    budget_s: float = 2.0,
    min_rounds: int = 5,
    max_rounds: int = 100,
) -> dict[str, Timing]:
    """Time each callable once per round, in turns, for about `budget_s` seconds in all.

    Args:
        around: of some callables, what is entered before their samples and not timed.
    """

    def sample(name: str) -> float:
        with around.get(name, nullcontext)():
            return clock.seconds(callables[name])

    estimates = {name: min(sample(name) for _ in range(WARM_UPS)) for name in callables}
    flush_s = clock.seconds(lambda: None)
    round_s = sum(max(seconds, flush_s) + flush_s for seconds in estimates.values())
    rounds = min(max_rounds, max(min_rounds, int(budget_s / max(round_s, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in callables}
    names = list(callables)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(sample(name))
    return {name: Timing(tuple(samples[name]), 1) for name in names}
