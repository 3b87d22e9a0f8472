"""A benchmark report with made-up numbers, for the tests of what reads reports."""

from __future__ import annotations

from typing import Any

from fused_attention import Band
from fused_attention.benchmarks.cases import Case, square
from fused_attention.benchmarks.contenders import CONTENDERS, NAIVE, OURS, SDPA
from fused_attention.benchmarks.memory import MemoryResult, io_bytes
from fused_attention.benchmarks.run import SCHEMA, Report

SECONDS = {OURS: 0.010, NAIVE: 0.040, SDPA: 0.020}
CASES = (
    square(1, 2, 128, 64, series="full"),
    square(1, 2, 256, 64, series="full"),
    square(1, 2, 256, 64, band=Band.sliding(16), backward=False),
)


def example_report() -> Report:
    """Ours takes 10 ms, the naive formula 40, SDPA 20; memory is ten times inputs and outputs."""
    results = [result(case, direction) for case in CASES for direction in case.directions]
    memory = [
        memory_result(name, square(1, 1, length, 64, backward=backward))
        for backward in (False, True)
        for length in (128, 256)
        for name in (OURS, NAIVE, SDPA)
    ]
    return {
        "schema": SCHEMA,
        "set": "demo",
        "seconds": 1.0,
        "machine": {
            "cpu": "An Imaginary CPU",
            "cores": 2,
            "torch": "2.13.0",
            "torch_isa": "AVX2",
            "date": "2026-01-02 03:04 UTC",
            "revision": "0123456789",
        },
        "results": results,
        "memory": memory,
    }


def result(case: Case, direction: str, threads: int = 2) -> dict[str, Any]:
    entries = {
        c.name: {
            "status": "ok",
            "accuracy_ratio": 0.5,
            "accuracy_worst": "out",
            "median_s": SECONDS[c.name],
            "min_s": SECONDS[c.name],
        }
        for c in CONTENDERS
    }
    return {
        "name": case.name,
        "case": case.as_dict(),
        "direction": direction,
        "threads": threads,
        "load": {"other_cores": 0.0, "stolen_cores": 0.0, "loadavg": 0.5},
        "contenders": entries,
        "speedup": {NAIVE: 4.0, SDPA: 2.0},
        "limit_share": 0.25,
    }


def memory_result(name: str, case: Case) -> dict[str, Any]:
    inputs, outputs = io_bytes(case)
    return MemoryResult(name, case, 10 * (inputs + outputs) - inputs, inputs, outputs).as_dict()
