"""A report of a GPU as a table: speed, share of the limit, and against each of torch's kernels."""

from __future__ import annotations

from typing import Any

from .cells import percent, time_cell, times_cell
from .contenders import CUDNN, EFFICIENT, FLASH, MATH, OURS

PEERS = {FLASH: "vs flash", EFFICIENT: "vs efficient", CUDNN: "vs cuDNN", MATH: "vs unfused"}
GPU_HEADERS = ("Case", "Pass", "ours, ms", "TFLOP/s", "of limit", *PEERS.values())


def is_gpu_report(report: dict[str, Any]) -> bool:
    """Whether the contenders are those of a GPU."""
    return any(FLASH in result["contenders"] for result in report["results"])


def gpu_time_rows(report: dict[str, Any]) -> list[list[str]]:
    """One row of cells for each result, under GPU_HEADERS."""
    rows = []
    for result in report["results"]:
        ours = result["contenders"][OURS]
        speed = f"{result['flops'] / ours['median_s'] * 1e-12:.0f}" if "median_s" in ours else "—"
        cells = [result["name"], result["direction"], time_cell(ours), speed]
        peers = [times_cell(result["speedup"].get(name)) for name in PEERS]
        rows.append([*cells, percent(result["limit_share"]), *peers])
    return rows


def gpu_line(report: dict[str, Any]) -> str:
    """One sentence: on what, with what and when the report was measured."""
    machine = report["machine"]
    told = {"driver": machine.get("driver_version"), "cuDNN": machine.get("cudnn")}
    versions = "".join(f", {name} {value}" for name, value in told.items() if value)
    revision = f", revision {machine['revision']}" if machine["revision"] else ""
    gpu = machine.get("gpu", "an unknown GPU")
    return f"{gpu}{versions}, torch {machine['torch']}, {machine['date']}{revision}."
