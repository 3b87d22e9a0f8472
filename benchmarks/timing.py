"""Interleaved timing: several callables on the same inputs, in turns, in one run.

Whatever disturbs the machine disturbs all of them alike, and ratios are taken inside a round.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# A sample shorter than this is mostly timer and call noise, so short calls are timed in batches.
SHORTEST_SAMPLE_S = 1e-3
# Above this one more untimed call per turn (to bring the caches back) costs more than it gains.
LONGEST_RESETTLED_S = 20e-3
# A call that takes longer than this is warm after one.
LONGEST_WARMED_TWICE_S = 0.5


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one callable: one sample per round."""

    samples: tuple[float, ...]
    calls_per_sample: int

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples)

    @property
    def min_s(self) -> float:
        return min(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range over the median: how far the samples disagree."""
        if len(self.samples) < 4:
            return (max(self.samples) - self.min_s) / self.median_s
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / self.median_s


def time_interleaved(
    callables: Mapping[str, Callable[[], object]],
    budget_s: float = 3.0,
    min_rounds: int = 3,
    max_rounds: int = 40,
) -> dict[str, Timing]:
    """Time each callable once per round, in turns, for about `budget_s` seconds in all.

    Two warm-up calls come first, of a long call one. The order rotates from round to round, so that
    no callable always follows the same neighbour.
    """
    estimates = {name: _warm_up(call) for name, call in callables.items()}
    batch = {
        name: max(1, math.ceil(SHORTEST_SAMPLE_S / seconds)) for name, seconds in estimates.items()
    }
    round_s = sum(_round_cost(seconds, batch[name]) for name, seconds in estimates.items())
    rounds = min(max_rounds, max(min_rounds, int(budget_s / max(round_s, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in callables}
    names = list(callables)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            call = callables[name]
            if estimates[name] < LONGEST_RESETTLED_S:
                call()
            samples[name].append(_seconds_per_call(call, batch[name]))
    return {name: Timing(tuple(samples[name]), batch[name]) for name in names}


def speedup(ours: Timing, peer: Timing) -> float:
    """How many times faster `ours` is: the median over rounds of peer / ours."""
    pairs = zip(ours.samples, peer.samples, strict=True)
    return statistics.median(b / a for a, b in pairs)


def _warm_up(call: Callable[[], object]) -> float:
    first = _seconds_per_call(call, 1)
    if first > LONGEST_WARMED_TWICE_S:
        return first
    return max(_seconds_per_call(call, 1), 1e-9)


def _round_cost(seconds: float, calls: int) -> float:
    return seconds * (calls + (seconds < LONGEST_RESETTLED_S))


def _seconds_per_call(call: Callable[[], object], calls: int) -> float:
    begin = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - begin) / (1e9 * calls)


@dataclass
class LoadMonitor:
    """How busy the rest of the machine was between `start` and `report`, from /proc/stat.

    Off Linux only the load average, where there is one, is reported.
    """

    _begin: tuple[float, float, float] | None = field(default=None, init=False)
    _begin_s: float = field(default=0.0, init=False)

    def start(self) -> LoadMonitor:
        self._begin, self._begin_s = _cpu_seconds(), time.perf_counter()
        return self

    def report(self) -> dict[str, float | None]:
        """Cores kept busy by other processes, cores stolen by the host, load average (1 min)."""
        load: dict[str, float | None] = {"other_cores": None, "stolen_cores": None}
        end = _cpu_seconds()
        if self._begin is not None and end is not None:
            wall = max(time.perf_counter() - self._begin_s, 1e-9)
            busy, stolen, own = (b - a for a, b in zip(self._begin, end, strict=True))
            load["other_cores"] = round(max(0.0, (busy - own) / wall), 3)
            load["stolen_cores"] = round(max(0.0, stolen / wall), 3)
        load["loadavg"] = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        return load


def _cpu_seconds() -> tuple[float, float, float] | None:
    """(busy, stolen, this process's own) CPU seconds so far; None where /proc/stat is missing."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    ticks = [int(x) for x in first[1:9]]  # user nice system idle iowait irq softirq steal
    per_second = os.sysconf("SC_CLK_TCK")
    busy = sum(ticks[i] for i in (0, 1, 2, 5, 6)) / per_second
    own = os.times()
    return busy, ticks[7] / per_second, own.user + own.system
