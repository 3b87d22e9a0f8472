"""Additive attention against its formula in plain torch, which stores every tanh: time and memory.

    python -m fused_attention.benchmarks.additive --json results/kernels/additive.json

Times are taken in turns in one run, on sizes where the formula's [B, Lq, Lk, D] fits. The memory of
the call is how far it raises the resident size of this process, inputs and upstream gradients
aside; at the largest size the formula is not run, and its one tensor of tanh counts for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention import additive_attention
from fused_attention.text import table

from .cases import DTYPES
from .contenders import OURS
from .machine import machine_info
from .memory import MIB, peak_bytes
from .options import parse, parser_of, store
from .timing import LoadMonitor, speedup, time_interleaved

SCHEMA = 1
PEER = "formula"
LEAST_SPEEDUP, LEAST_SAVING = 3.0, 100.0
TOLERANCE = {"fp32": 1e-4, "bf16": 6e-2}  # of the largest result


class Size(NamedTuple):
    """[batch, len_q, dim] attends to [batch, len_k, dim]."""

    batch: int
    len_q: int
    len_k: int
    dim: int
    dtype: str = "fp32"

    @property
    def tanh_bytes(self) -> int:
        """What the formula needs for its tanh alone."""
        return self.batch * self.len_q * self.len_k * self.dim * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"B={self.batch} Lq={self.len_q} Lk={self.len_k} D={self.dim} {self.dtype}"


TIMED = (
    Size(4, 256, 256, 256),
    Size(1, 512, 512, 512),
    Size(4, 256, 256, 256, "bf16"),
    Size(64, 32, 32, 256),
    Size(64, 1, 512, 512),  # a step of decoding
)
LARGEST = Size(64, 512, 512, 512)
SMALL = Size(1, 16, 16, 512)


class Inputs(NamedTuple):
    """query_proj, key_proj, value and v, and the gradient that comes from above."""

    operands: tuple[Tensor, ...]
    grad_out: Tensor


def make_inputs(size: Size) -> Inputs:
    """Normal numbers; v such that scores have a deviation of about 1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DTYPES[size.dtype])

    shapes = [(size.batch, n, size.dim) for n in (size.len_q, size.len_k, size.len_k)]
    operands = (*(normal(*shape) for shape in shapes), normal(size.dim) * 1.3 * size.dim**-0.5)
    return Inputs(tuple(x.requires_grad_() for x in operands), normal(*shapes[0]))


def formula(query: Tensor, key: Tensor, value: Tensor, v: Tensor) -> Tensor:
    """The definition, as it is usually written."""
    scores = torch.tanh(query[:, :, None] + key[:, None]) @ v
    return scores.softmax(dim=-1) @ value


FUNCTIONS: dict[str, Callable[..., Tensor]] = {OURS: additive_attention, PEER: formula}


def forward(function: Callable[..., Tensor], inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return function(*inputs.operands)


def training(function: Callable[..., Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    """out and the gradients of all operands."""
    out = function(*inputs.operands)
    return out, *torch.autograd.grad(out, inputs.operands, inputs.grad_out)


PASSES: dict[str, Callable[..., Any]] = {"forward": forward, "forward and backward": training}


def check(size: Size, inputs: Inputs) -> None:
    """Nothing wrong is timed.

    Raises:
        RuntimeError: the two disagree.
    """
    found = zip(*(training(function, inputs) for function in FUNCTIONS.values()), strict=True)
    for ours, theirs in found:
        error = (ours - theirs).abs().max() / theirs.abs().max()
        if not error <= TOLERANCE[size.dtype]:
            raise RuntimeError(f"{size}: the results differ by {error:.1e}")


def time_size(size: Size, seconds: float) -> list[dict[str, Any]]:
    """One row for each pass."""
    inputs, rows = make_inputs(size), []
    check(size, inputs)
    for name, run in PASSES.items():
        calls = {who: partial(run, function, inputs) for who, function in FUNCTIONS.items()}
        timings = time_interleaved(calls, seconds)
        rows.append(
            {
                "size": size._asdict(),
                "pass": name,
                "seconds": {who: timing.median_s for who, timing in timings.items()},
                "speedup": speedup(timings[OURS], timings[PEER]),
            }
        )
    return rows


def measure_memory(size: Size) -> list[dict[str, Any]]:
    """Peak of each pass of ours, in a process whose heap should be as good as new."""
    inputs, small, rows = make_inputs(size), make_inputs(SMALL), []
    for name, run in PASSES.items():
        run(additive_attention, small)
        peak, reason = peak_bytes(partial(run, additive_attention, inputs))
        saving = None if peak is None else size.tanh_bytes / peak
        row = {"size": size._asdict(), "pass": name, "peak_bytes": peak, "reason": reason}
        rows.append({**row, "tanh_bytes": size.tanh_bytes, "saving": saving})
    return rows


def measure(seconds: float, timed: Sequence[Size], largest: Size) -> dict[str, Any]:
    """The whole report; memory comes first, while the heap is small."""
    monitor = LoadMonitor().start()
    memory = measure_memory(largest)
    times = [row for size in timed for row in time_size(size, seconds)]
    return {
        "schema": SCHEMA,
        "machine": machine_info(),
        "load": monitor.report(),
        "memory": memory,
        "times": times,
    }


def misses(report: dict[str, Any]) -> list[str]:
    """Which bars are missed: 1/100 of the formula's memory, 3 times its speed where Lq is long."""
    found = [
        f"{Size(**row['size'])}, {row['pass']}: {row['saving']:.0f}x less memory"
        for row in report["memory"]
        if row["saving"] is not None and row["saving"] < LEAST_SAVING
    ]
    return found + [
        f"{Size(**row['size'])}, {row['pass']}: {row['speedup']:.1f}x as fast"
        for row in report["times"]
        if row["size"]["len_q"] > 1 and row["speedup"] < LEAST_SPEEDUP
    ]


def as_table(report: dict[str, Any]) -> str:
    times = [("size", "pass", f"{OURS} ms", f"{PEER} ms", "speedup")]
    for row in report["times"]:
        milliseconds = [f"{1e3 * row['seconds'][who]:.2f}" for who in FUNCTIONS]
        size = str(Size(**row["size"]))
        times.append((size, row["pass"], *milliseconds, f"{row['speedup']:.1f}"))
    memory = [("size", "pass", f"{OURS} MiB", "one tanh MiB", "less")]
    for row in report["memory"]:
        peak = row["peak_bytes"]
        cells = (
            [row["reason"], ""] if peak is None else [f"{peak / MIB:.0f}", f"{row['saving']:.0f}x"]
        )
        tanh = f"{row['tanh_bytes'] / MIB:.0f}"
        memory.append((str(Size(**row["size"])), row["pass"], cells[0], tanh, cells[1]))
    return f"{table(times)}\n\n{table(memory)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a bar is missed."""
    summary = "Time and memory of additive attention against its formula in plain torch."
    options = parse(parser_of("additive", summary, 2.0, "for each size and pass"), arguments)
    report = measure(options.seconds, TIMED, LARGEST)
    print(as_table(report))
    store(report, options.json)
    missed = misses(report)
    for miss in missed:
        print(f"missed: {miss}")
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
