"""Runs a set of cases: gate, interleaved timing, peak memory; gives one report for JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .accuracy import finite
from .cases import MEMORY_LADDERS, Case, Inputs, case_set, memory_cases
from .contenders import CONTENDERS, OURS, Contender, skip_reason
from .cuda_contenders import CUDA_CONTENDERS
from .flex import FLEX_CONTENDER
from .flops import flops_in_direction
from .gate import Verdict, judge
from .gpu_timing import GpuClock, time_interleaved_on_gpu
from .limits import Probes
from .machine import gpu_info, gpu_state, machine_info
from .memory import MemoryResult, measure
from .options import store
from .timing import LoadMonitor, Timing, speedup, time_interleaved

SCHEMA = 1

Report = dict[str, Any]
OnStep = Callable[[str, float], None]
# How long the steps take, relative to each other, for progress bars.
CASE_WEIGHT, MEMORY_WEIGHT = 2.5, 0.5


@dataclass(frozen=True)
class Settings:
    """What to run. `threads` are torch thread counts, each of them runs the whole set."""

    set_name: str = "demo"
    dtypes: tuple[str, ...] | None = None  # None: the set's own choice
    threads: tuple[int, ...] = ()  # empty: as many as torch uses now
    seconds: float = 2.0  # timing budget per case and direction
    memory: bool = True
    limit_s: float = math.inf  # after this time no further case is begun

    @property
    def cases(self) -> tuple[Case, ...]:
        return case_set(self.set_name, self.dtypes)

    @property
    def thread_counts(self) -> tuple[int, ...]:
        return self.threads or (torch.get_num_threads(),)

    @property
    def needs_gpu(self) -> bool:
        return any(case.device == "cuda" for case in self.cases)

    def memory_jobs(self) -> list[tuple[str, Case]]:
        if not self.memory or self.set_name not in MEMORY_LADDERS:
            return []
        peers_up_to = MEMORY_LADDERS[self.set_name].peers_up_to
        return [
            (c.name, case)
            for case in memory_cases(self.set_name)
            for c in CONTENDERS
            if c.name == OURS or case.len_q <= peers_up_to
        ]

    @property
    def weight(self) -> float:
        """Sum of the weights that `run` tells to `on_step`."""
        cases = sum(len(case.directions) for case in self.cases) * len(self.thread_counts)
        return cases * CASE_WEIGHT + len(self.memory_jobs()) * MEMORY_WEIGHT


def run(settings: Settings, on_step: OnStep = lambda step, weight: None) -> Report:
    """Run a set; `on_step` is told the name and the weight of each step as it begins.

    The report holds `machine`, `results` (one for a case, a direction and a thread count),
    `dropped` (cases for which the time did not suffice) and `memory`. torch's thread count is put
    back afterwards.
    """
    begin, threads_before = time.monotonic(), torch.get_num_threads()
    report: Report = {
        "schema": SCHEMA,
        "set": settings.set_name,
        "seconds": settings.seconds,
        "machine": machine_info() | (gpu_info() if settings.needs_gpu else {}),
        "results": [],
        "dropped": [],
        "memory": [],
    }
    try:
        for threads in settings.thread_counts:
            torch.set_num_threads(threads)
            for case in settings.cases:
                on_step(case.name, len(case.directions) * CASE_WEIGHT)
                if time.monotonic() - begin > settings.limit_s:
                    report["dropped"].append(case.name)
                    continue
                contenders = contenders_for(case, settings.set_name)
                report["results"] += run_case(case, contenders, settings.seconds)
    finally:
        torch.set_num_threads(threads_before)
    report["memory"] = [
        result.as_dict() for result in run_memory(settings, max(settings.thread_counts), on_step)
    ]
    return report


def contenders_for(case: Case, set_name: str) -> tuple[Contender, ...]:
    """Compiling takes seconds for each case, which only the set `cpu` spends."""
    if case.device == "cuda":
        return CUDA_CONTENDERS
    return (*CONTENDERS, FLEX_CONTENDER) if set_name == "cpu" else CONTENDERS


def run_case(case: Case, contenders: tuple[Contender, ...], seconds: float) -> Iterator[Report]:
    """One result for each direction of the case, with torch's present thread count."""
    inputs = case.make_inputs()
    fitting = [c for c in contenders if skip_reason(c.name, case, case.backward) is None]
    verdicts = judge(case, inputs, fitting)
    for direction in case.directions:
        taking_part = [c for c in contenders if c.differentiable or direction == "forward"]
        yield _time_direction(case, inputs, direction, taking_part, verdicts, seconds)


def _time_direction(
    case: Case,
    inputs: Inputs,
    direction: str,
    contenders: list[Contender],
    verdicts: dict[str, Verdict],
    seconds: float,
) -> Report:
    right = [c for c in contenders if c.name in verdicts and verdicts[c.name].right]
    probes = Probes.of(case)
    calls = {c.name: getattr(c, direction)(case, inputs) for c in right}
    monitor = LoadMonitor().start()
    timed = {**calls, **probes.calls}
    if case.device == "cuda":
        around = {c.name: c.around for c in right}
        timings = time_interleaved_on_gpu(timed, around, GpuClock(), budget_s=seconds)
    else:
        timings = time_interleaved(timed, budget_s=seconds)
    load = monitor.report() | (gpu_state() if case.device == "cuda" else {})
    limits = probes.limits(timings)
    flops = flops_in_direction(case.forward_flops, direction)
    result: Report = {
        "name": case.name,
        "case": case.as_dict(),
        "direction": direction,
        "threads": torch.get_num_threads(),
        "flops": flops,
        "io_bytes": case.io_bytes,
        "load": load,
        "limits": dataclasses.asdict(limits),
        "contenders": {
            c.name: _entry(c, case, verdicts.get(c.name), timings.get(c.name)) for c in contenders
        },
        "speedup": {},
        "limit_share": None,
        "limit": limits.nearest(flops, case.io_bytes),
    }
    if OURS in calls:
        ours = timings[OURS]
        peers = [name for name in calls if name != OURS]
        result["speedup"] = {name: speedup(ours, timings[name]) for name in peers}
        result["limit_share"] = limits.least_seconds(flops, case.io_bytes) / ours.median_s
    return result


def _entry(who: Contender, case: Case, verdict: Verdict | None, timing: Timing | None) -> Report:
    """One contender's part of a result; `status` is ok, WRONG, failed or skipped."""
    if verdict is None:
        return {"status": "skipped", "reason": skip_reason(who.name, case, case.backward)}
    if verdict.failure is not None:
        status = "skipped" if verdict.unable else "failed"
        return {"status": status, "reason": verdict.failure}
    accuracy = {"accuracy_ratio": finite(verdict.ratio), "accuracy_worst": verdict.worst}
    if timing is None:
        return {"status": "WRONG", **accuracy}
    return {
        "status": "ok",
        **accuracy,
        "median_s": timing.median_s,
        "min_s": timing.min_s,
        "spread": timing.spread,
        "rounds": len(timing.samples),
        "calls_per_round": timing.calls_per_sample,
    }


def run_memory(settings: Settings, threads: int, on_step: OnStep) -> Iterator[MemoryResult]:
    """Peak memory of every contender that is right on the shortest of the lengths."""
    jobs = settings.memory_jobs()
    if not jobs:
        return
    reasons = _memory_reasons(jobs)
    allowed = [job for job in jobs if reasons[job] is None]
    with contextlib.closing(measure(allowed, threads)) as measured:
        for name, case in jobs:
            on_step(f"peak memory of {name}, length {case.len_q}", MEMORY_WEIGHT)
            reason = reasons[name, case]
            yield MemoryResult.unmeasured(name, case, reason) if reason else next(measured)


def _memory_reasons(jobs: list[tuple[str, Case]]) -> dict[tuple[str, Case], str | None]:
    """Why a job is not measured: it would not fit, or the contender fails the gate."""
    shortest: dict[bool, Case] = {}
    for _, case in jobs:
        best = shortest.setdefault(case.backward, case)
        if case.len_q < best.len_q:
            shortest[case.backward] = case
    verdicts = {
        backward: judge(case, case.make_inputs(), CONTENDERS) for backward, case in shortest.items()
    }
    reasons = {}
    for name, case in jobs:
        wrong = None if verdicts[case.backward][name].right else "WRONG"
        reasons[name, case] = wrong or skip_reason(name, case, case.backward)
    return reasons


def save(report: Report, path: Path) -> None:
    """Write a report as JSON, one that `load` reads back."""
    store(report, path)


def load(path: Path) -> Report:
    """Read a report; ValueError when it is none, or one of another schema."""
    report = json.loads(path.read_text())
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ValueError(f"{path}: must be a benchmark report of schema {SCHEMA}")
    return report


def judged_right(report: Report) -> bool:
    """Whether our kernel was neither WRONG nor failing anywhere in the report."""
    return all(result["contenders"][OURS]["status"] == "ok" for result in report["results"])
