"""How time grows with the length of a sliding window's attention: linearly, or it prints how.

    python -m fused_attention.benchmarks.growth --json build/growth.json

One head of dim 64 and a causal window of 512, from 4096 tokens on. The slope is that of a straight
line through the medians on logarithmic axes: 1 is linear, 2 is quadratic. Lengths are timed in
turns, so that a machine that gets slower meanwhile does so for all of them.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention import Band, attention
from fused_attention.text import table

from .cases import DTYPES
from .machine import machine_info
from .options import parse, parser_of, store
from .timing import LoadMonitor, Timing, time_interleaved

SCHEMA = 1
WINDOW, DIM = 512, 64
BAND = Band.sliding(WINDOW)
LENGTHS = tuple(4096 * 2**n for n in range(7))  # to 262144
LARGEST_DEPARTURE = 0.05  # of the slope from 1


def slope(times: Mapping[int, float]) -> float:
    """The exponent p of the best fit time ~ length^p."""
    lengths, seconds = (list(map(math.log, x)) for x in (times.keys(), times.values()))
    return statistics.linear_regression(lengths, seconds).slope


class Inputs(NamedTuple):
    """query, key, value and grad_out [1, 1, length, DIM]; without a mask, which would be huge."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor

    @classmethod
    def make(cls, length: int, dtype: str) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        return cls(*torch.randn(4, 1, 1, length, DIM, generator=generator).to(DTYPES[dtype]))


def forward_call(inputs: Inputs) -> Callable[[], object]:
    return lambda: attention(*inputs[:3], band=BAND)


def backward_call(inputs: Inputs) -> Callable[[], object]:
    leaves = [x.requires_grad_() for x in inputs[:3]]
    out = attention(*leaves, band=BAND)
    return lambda: torch.autograd.grad(out, leaves, inputs.grad_out, retain_graph=True)


CALLS = {"forward": forward_call, "backward": backward_call}


def measure(dtype: str, direction: str, lengths: Sequence[int], seconds: float) -> dict[str, Any]:
    """One row of the report: the medians and their slope."""
    calls = {str(n): CALLS[direction](Inputs.make(n, dtype)) for n in lengths}
    timings: dict[str, Timing] = time_interleaved(calls, seconds)
    times = {n: timings[str(n)].median_s for n in lengths}
    return {
        "dtype": dtype,
        "direction": direction,
        "median_s": {str(n): time for n, time in times.items()},
        "slope": slope(times),
    }


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each dtype and direction: microseconds per 1024 tokens, and the slope."""
    lengths = list(rows[0]["median_s"])
    lines = [["us per 1024 tokens", *lengths, "slope"]]
    for row in rows:
        costs = [row["median_s"][n] * 1e6 / (int(n) / 1024) for n in lengths]
        name = f"{row['dtype']} {row['direction']}"
        lines.append([name, *(f"{cost:.0f}" for cost in costs), f"{row['slope']:.3f}"])
    return table(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the exit code is 1 if a slope is farther from 1 than the limit."""

    def lengths(text: str) -> list[int]:
        parts = text.split(",")
        found = [int(part) for part in parts if part.isdigit() and int(part) > 0]
        if not 2 <= len({*found}) == len(parts):
            rule = "must be two or more different lengths with commas between"
            raise argparse.ArgumentTypeError(f"{rule}, got {text!r}")
        return found

    summary = "Time a sliding window's attention at growing lengths and fit a slope."
    parser = parser_of("growth", summary, 15.0, "of each line")
    parser.add_argument("--lengths", type=lengths, default=LENGTHS, metavar="N,N[,N]")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default fp32 and bf16")
    options = parse(parser, argv)
    monitor = LoadMonitor().start()
    rows = [
        measure(dtype, direction, options.lengths, options.seconds)
        for dtype in options.dtype or ("fp32", "bf16")
        for direction in CALLS
    ]
    print(as_table(rows))
    report = {"schema": SCHEMA, "machine": machine_info(), "load": monitor.report()}
    report |= {"window": WINDOW, "head_dim": DIM, "heads": 1, "rows": rows}
    store(report, options.json)
    bent = [row for row in rows if not abs(row["slope"] - 1) <= LARGEST_DEPARTURE]
    for row in bent:
        print(f"not linear: {row['dtype']} {row['direction']} has the slope {row['slope']:.3f}")
    return int(bool(bent))


if __name__ == "__main__":
    raise SystemExit(main())
