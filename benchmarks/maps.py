"""attention_maps against the weights by plain torch: time and memory.

    python -m fused_attention.benchmarks.maps --json build/maps.json

After a forward pass that left its log-sum-exp, what is asked about the causal weights of one head
of dim 64 is computed by attention_maps, and by torch from the softmax of the scores, which for
chosen rows are those rows' alone. A result that is not the same is not timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention import attention, attention_maps
from fused_attention.arguments import dtypes, positive_ints
from fused_attention.text import table

from .cases import DTYPES
from .contenders import NAIVE, OURS
from .machine import machine_info
from .memory import MIB, peak_bytes
from .options import parse, parser_of, store
from .timing import LoadMonitor, speedup, time_interleaved

SCHEMA = 1
DIM, ROWS, TOP_K = 64, 64, 8
FACTS: dict[str, dict[str, Any]] = {
    "entropy": {"entropy": True},
    "top 8": {"top_k": TOP_K},
    "column mass": {"column_mass": True},
    "64 rows": {"rows": ROWS},
    "all of it": {"entropy": True, "top_k": TOP_K, "column_mass": True, "rows": ROWS},
}
# The largest difference; a mass is a sum over all queries, 16-bit scores are rounded by torch.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}


class Inputs(NamedTuple):
    """One head [1, 1, length, DIM], its lse, and the chosen rows."""

    query: Tensor
    key: Tensor
    lse: Tensor
    rows: Tensor

    @classmethod
    def make(cls, length: int, dtype: str) -> Inputs:
        torch.manual_seed(0)
        query, key = torch.randn(2, 1, 1, length, DIM).to(DTYPES[dtype])
        _, lse = attention(query, key, key, causal=True, return_lse=True)
        return cls(query, key, lse, torch.linspace(0, length - 1, ROWS).long())


def ours(inputs: Inputs, asked: dict[str, Any]) -> list[Tensor]:
    """The results in a fixed order: weights, column mass, entropy, top weights."""
    options = asked | ({"rows": inputs.rows} if "rows" in asked else {})
    found = attention_maps(inputs.query, inputs.key, inputs.lse, causal=True, **options)
    results = (found.weights, found.column_mass, found.entropy, found.top_weights)
    return [result for result in results if result is not None]


def naive(inputs: Inputs, asked: dict[str, Any]) -> list[Tensor]:
    """The same from the weights, which are all there but for chosen rows alone."""
    found: list[Tensor] = []
    if set(asked) == {"rows"}:
        return [_weights(inputs, inputs.rows)]
    weights = _weights(inputs, torch.arange(inputs.query.shape[2]))
    if "rows" in asked:
        found.append(weights[:, :, inputs.rows])
    if "column_mass" in asked:
        found.append(weights.sum(-2))
    if "entropy" in asked:
        found.append(torch.special.entr(weights).sum(-1))
    if "top_k" in asked:
        found.append(weights.topk(TOP_K, -1).values)
    return found


def _weights(inputs: Inputs, rows: Tensor) -> Tensor:
    """The softmax in fp32, as models compute it that show their weights."""
    query = inputs.query if len(rows) == inputs.query.shape[2] else inputs.query[:, :, rows]
    scores = query @ inputs.key.mT * DIM**-0.5
    hidden = torch.arange(inputs.key.shape[2]) > rows[:, None]
    weights: Tensor = scores.masked_fill_(hidden, -torch.inf).softmax(-1, dtype=torch.float32)
    return weights


CONTENDERS: dict[str, Callable[[Inputs, dict[str, Any]], list[Tensor]]] = {OURS: ours, NAIVE: naive}


def difference(inputs: Inputs, asked: dict[str, Any]) -> float:
    """The largest of all results."""
    pairs = zip(ours(inputs, asked), naive(inputs, asked), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


class Job(NamedTuple):
    """What is asked about which length."""

    length: int
    dtype: str
    fact: str


def measure(job: Job, peaks: dict[str, int | None], seconds: float) -> dict[str, Any]:
    """Check and time one job; `peaks`: what its contenders take beside their inputs."""
    inputs, asked = Inputs.make(job.length, job.dtype), FACTS[job.fact]
    row: dict[str, Any] = {**job._asdict(), "difference": difference(inputs, asked)}
    row["wrong"] = not row["difference"] <= TOLERANCE[job.dtype]
    if row["wrong"]:
        return row

    def call(name: str) -> Callable[[], object]:
        return lambda: CONTENDERS[name](inputs, asked)

    timings = time_interleaved({name: call(name) for name in CONTENDERS}, seconds, max_rounds=20)
    row["contenders"] = {
        name: {"median_s": t.median_s, "spread": t.spread, "peak_bytes": peaks[name]}
        for name, t in timings.items()
    }
    return row | {"speedup": speedup(timings[OURS], timings[NAIVE])}


def measure_peaks(jobs: Sequence[Job], threads: int) -> list[dict[str, int | None]]:
    """Of each job, each contender in a process of its own; None where it cannot be told."""
    command = [sys.executable, "-m", __spec__.name, "--threads", str(threads), "--peaks"]
    done = subprocess.run([*command, json.dumps(jobs)], capture_output=True, text=True, check=True)
    found: list[dict[str, int | None]] = json.loads(done.stdout)
    return found


def peak_here(job: Job, name: str) -> int | None:
    """In a fork of this process, after a small call that sets up what a first one does."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        contender, asked = CONTENDERS[name], FACTS[job.fact]
        contender(Inputs.make(2 * ROWS, job.dtype), asked)
        inputs = Inputs.make(job.length, job.dtype)
        os.write(write, json.dumps(peak_bytes(lambda: contender(inputs, asked))[0]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return int(text) if text.isdigit() else None


def as_table(rows: list[dict[str, Any]]) -> str:
    """One line for each length, dtype and fact."""
    header = ["length", "dtype", "asked", "ours, ms", "torch, ms", "speed", "ours, MiB"]
    lines = [[*header, "torch, MiB"]]
    for row in rows:
        what = [str(row["length"]), row["dtype"], row["fact"]]
        if row["wrong"]:
            lines.append([*what, "WRONG", *["-"] * 4])
            continue
        both = [row["contenders"][name] for name in CONTENDERS]
        times = [f"{one['median_s'] * 1e3:.1f}" for one in both]
        peaks = ["-" if one["peak_bytes"] is None else mib(one["peak_bytes"]) for one in both]
        lines.append([*what, *times, f"{row['speedup']:.1f}x", *peaks])
    return table(lines)


def mib(count: int) -> str:
    return f"{count / MIB:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the exit code is 1 if a result is wrong."""
    parser = parser_of("maps", __doc__.split("\n", 1)[0], 1.0, "of each line")
    parser.add_argument("--lengths", type=positive_ints, default=(4096, 8192), metavar="N[,N]")
    parser.add_argument("--dtypes", type=dtypes, default=("fp32", "bf16"), metavar="NAME[,NAME]")
    parser.add_argument("--peaks", type=json.loads, help=argparse.SUPPRESS)  # of these jobs
    arguments = parse(parser, argv)
    if arguments.peaks is not None:
        jobs = [Job(*job) for job in arguments.peaks]
        print(json.dumps([{name: peak_here(job, name) for name in CONTENDERS} for job in jobs]))
        return 0
    cases = itertools.product(arguments.lengths, arguments.dtypes, FACTS)
    jobs = [Job(*case) for case in cases]
    peaks = measure_peaks(jobs, arguments.threads)
    monitor = LoadMonitor().start()
    rows = [measure(job, peak, arguments.seconds) for job, peak in zip(jobs, peaks, strict=True)]
    print(as_table(rows))
    report = {"schema": SCHEMA, "machine": machine_info(), "threads": arguments.threads}
    store(report | {"load": monitor.report(), "rows": rows}, arguments.json)
    return 1 if any(row["wrong"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
