"""What each door into the package costs per call, over a direct call of attention().

    python -m fused_attention.benchmarks.overhead

The problem is tiny, so that nearly all of a call is Python and dispatch. All doors are timed in one
run, in turns; a door's overhead is the median over the rounds of its time less that of the direct
call (or of whatever else it does besides attention, such as projections, done by hand) in the same
round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from fused_attention.arguments import positive_int
from fused_attention.text import table

from .doors import BATCH, DOORS, HEAD_DIM, HEADS, LENGTH, Operands, Timed
from .machine import machine_info
from .options import parse, parser_of, store

SCHEMA = 1
LIMIT_US = 30.0


def measure(rounds: int, calls: int, gradients: bool = False) -> dict[str, Any]:
    """Time all doors and report them.

    Args:
        rounds: how often each door has its turn.
        calls: how often it is called in a turn.
        gradients: whether the inputs require gradients; only the forward pass is timed.
    """
    operands = Operands.make(gradients)
    doors: dict[str, Timed] = {}
    report: dict[str, Any] = {}
    for name, build in DOORS.items():
        try:
            doors[name] = build(operands)
        except ImportError as error:
            report[name] = {"status": "missing", "reason": str(error)}
    with torch.set_grad_enabled(gradients):
        samples = _samples(doors, rounds, calls)
    for name, timed in doors.items():
        report[name] = {"status": "ok", "median_us": statistics.median(samples[name])}
        if timed.baseline is not None:
            pairs = zip(samples[name], samples[timed.baseline], strict=True)
            overhead = statistics.median(own - base for own, base in pairs)
            report[name] |= {"over": timed.baseline, "overhead_us": overhead}
    return {
        "schema": SCHEMA,
        "machine": machine_info(),
        "problem": f"fp32 [{BATCH}, {HEADS}, {LENGTH}, {HEAD_DIM}], causal",
        "gradients": gradients,
        "rounds": rounds,
        "calls": calls,
        "doors": {name: report[name] for name in DOORS},
    }


def _samples(doors: dict[str, Timed], rounds: int, calls: int) -> dict[str, list[float]]:
    """Microseconds per call of each door, one number per round."""
    samples: dict[str, list[float]] = {name: [] for name in doors}
    names = list(doors)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            timed = doors[name]
            with ExitStack() as stack:
                stack.enter_context(timed.context())
                timed.call()  # brings back the caches that the neighbour has emptied
                begin = time.perf_counter_ns()
                for _ in range(calls):
                    timed.call()
                samples[name].append((time.perf_counter_ns() - begin) / 1e3 / calls)
    return samples


def too_slow(report: dict[str, Any], limit_us: float) -> list[str]:
    """The doors whose overhead exceeds the limit."""
    doors = report["doors"].items()
    return [name for name, door in doors if door.get("overhead_us", limit_us) > limit_us]


def as_table(report: dict[str, Any]) -> str:
    rows = [("door", "us per call", "overhead, us", "over")]
    for name, door in report["doors"].items():
        if door["status"] != "ok":
            rows.append((name, door["status"], "", door["reason"]))
            continue
        overhead = f"{door['overhead_us']:+.1f}" if "over" in door else ""
        rows.append((name, f"{door['median_us']:.1f}", overhead, door.get("over", "")))
    return table(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a door costs more than the limit."""
    parser = parser_of("overhead", "Time the doors into the package on a tiny problem.")
    parser.set_defaults(threads=1)  # a tiny problem has nothing to share
    parser.add_argument("--rounds", type=positive_int, default=60, help="default %(default)s")
    calls_help = "per round, default %(default)s"
    parser.add_argument("--calls", type=positive_int, default=50, help=calls_help)
    parser.add_argument("--gradients", action="store_true", help="inputs require gradients")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_US, help="microseconds, default %(default)s"
    )
    threads = torch.get_num_threads()
    options = parse(parser, arguments)
    try:
        report = measure(options.rounds, options.calls, options.gradients)
    finally:
        torch.set_num_threads(threads)
    print(as_table(report))
    store(report, options.json)
    slow = too_slow(report, options.limit)
    if slow:
        print(f"over {options.limit:g} us: {', '.join(slow)}")
    return int(bool(slow))


if __name__ == "__main__":
    raise SystemExit(main())
