"""Reports as tables, and the measured table of README.md.

python -m fused_attention.benchmarks.table                    prints README's table
python -m fused_attention.benchmarks.table --write README.md  rewrites README's table from them
python -m fused_attention.benchmarks.table --check README.md  fails when README says otherwise
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cells import percent, time_cell, times_cell
from .contenders import CONTENDERS, FLEX, NAIVE, OURS, SDPA
from .gpu_table import GPU_HEADERS, gpu_line, gpu_time_rows, is_gpu_report
from .markdown import block_command, markdown_table
from .memory import MIB, MemoryResult
from .run import Report, load

RESULTS = Path(__file__).resolve().parent / "results"
README_MARKER = "measured"
NO_PART = {"status": "skipped"}  # a contender that has no such pass
# A result is marked when other programs kept more than this many cores busy during it.
QUIET_CORES = 0.25
NOISE_NOTE = f"* other programs kept more than {QUIET_CORES} cores busy meanwhile."

MEMORY_HEADING = (
    "Peak memory of a call with its inputs, 1 head, D 64, fp32 (least: inputs and outputs alone)"
)
PEERS = {NAIVE: "naive", SDPA: "SDPA", FLEX: "Flex"}
SUMMARY_HEADERS = (
    "Case",
    "forward, ms",
    "vs naive",
    "vs SDPA",
    "backward, ms",
    "vs naive",
    "vs SDPA",
)
MEMORY_HEADERS = (
    "Length",
    "Pass",
    "ours, MiB",
    "naive, MiB",
    "SDPA, MiB",
    "ours / least",
)


def time_table(report: Report, threads: int) -> tuple[str, Sequence[str], list[list[str]]]:
    """What the times at this thread count are called, the headers, and rows of cells."""
    if is_gpu_report(report):
        return f"Time, {gpu_line(report)}", GPU_HEADERS, gpu_time_rows(report)
    heading = f"Time, {threads} thread{'s' if threads > 1 else ''}"
    return heading, time_headers(report), time_rows(report, threads)


def peers_in(report: Report) -> list[str]:
    """The contenders other than ours that the report knows of."""
    known = {name for result in report["results"] for name in result["contenders"]}
    return [name for name in PEERS if name in known]


def time_headers(report: Report) -> tuple[str, ...]:
    labels = [PEERS[name] for name in peers_in(report)]
    times, speedups = (f"{label}, ms" for label in labels), (f"vs {label}" for label in labels)
    return ("Case", "Pass", "ours, ms", *times, *speedups, "of limit")


def time_rows(report: Report, threads: int) -> list[list[str]]:
    """One row of cells for each result at this thread count, under `time_headers`."""
    rows, peers = [], peers_in(report)
    for result in report["results"]:
        if result["threads"] != threads:
            continue
        entries = [result["contenders"].get(name, NO_PART) for name in (OURS, *peers)]
        times = [time_cell(entry) for entry in entries]
        speedups = [times_cell(result["speedup"].get(name)) for name in peers]
        name = result["name"] + ("*" if is_noisy(result) else "")
        share = percent(result["limit_share"])
        if result["limit_share"] is not None and result.get("limit") == "read":
            share += " of stream"
        rows.append([name, result["direction"], *times, *speedups, share])
    return rows


def memory_rows(report: Report) -> list[list[str]]:
    """One row of cells for each length and pass, under MEMORY_HEADERS."""
    results = [MemoryResult.from_dict(values) for values in report["memory"]]
    rows = []
    for case in dict.fromkeys(result.case for result in results):
        found = {result.contender: result for result in results if result.case == case}
        ours = found[OURS]
        ratio = "—" if ours.ratio is None else f"{ours.ratio:.2f}"
        cells = [_memory_cell(found.get(c.name)) for c in CONTENDERS]
        direction = "forward + backward" if case.backward else "forward"
        rows.append([str(case.len_q), direction, *cells, ratio])
    return rows


def unmeasured_memory(report: Report) -> list[str]:
    """Why our own peak memory is missing, where it is; each reason once."""
    return list(
        dict.fromkeys(
            f"peak memory not measured: {values['reason']}"
            for values in report["memory"]
            if values["contender"] == OURS and values["reason"] is not None
        )
    )


def thread_counts(report: Report) -> list[int]:
    return sorted({result["threads"] for result in report["results"]})


def is_noisy(result: dict[str, Any]) -> bool:
    return (result["load"]["other_cores"] or 0.0) > QUIET_CORES


def machine_line(report: Report) -> str:
    """One sentence: on what, with what and when the report was measured."""
    machine = report["machine"]
    revision = f", revision {machine['revision']}" if machine["revision"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']} "
        f"({machine['torch_isa']}), {machine['date']}{revision}."
    )


def summary_rows(report: Report, threads: int) -> list[list[str]]:
    """One row of cells for each case, forward and backward side by side, under SUMMARY_HEADERS."""
    rows: dict[str, list[str]] = {}
    for result in report["results"]:
        if result["threads"] != threads:
            continue
        name = result["name"] + ("\\*" if is_noisy(result) else "")
        row = rows.setdefault(result["name"], [name, *["—"] * (len(SUMMARY_HEADERS) - 1)])
        row[0] = max(row[0], name, key=len)
        speedups = [times_cell(result["speedup"].get(peer)) for peer in (NAIVE, SDPA)]
        begin = 1 if result["direction"] == "forward" else 4
        row[begin : begin + 3] = [time_cell(result["contenders"][OURS]), *speedups]
    return list(rows.values())


def report_markdown(report: Report) -> str:
    """What README shows of a report: its largest thread count and its peak memory."""
    if is_gpu_report(report):
        title = f"Set `{report['set']}`: {gpu_line(report)}"
        return f"{title}\n\n{markdown_table(GPU_HEADERS, gpu_time_rows(report), left=2)}"
    threads = max(thread_counts(report))
    rows = summary_rows(report, threads)
    parts = [
        f"Set `{report['set']}`, {threads} thread{'s' if threads > 1 else ''}: "
        f"{machine_line(report)}",
        markdown_table(SUMMARY_HEADERS, rows, left=1),
    ]
    if any("\\*" in row[0] for row in rows):
        parts.append(f"\\{NOISE_NOTE}")
    if report["memory"]:
        parts += [f"{MEMORY_HEADING}:", markdown_table(MEMORY_HEADERS, memory_rows(report))]
    return "\n\n".join(parts)


def stored_markdown(results: Path = RESULTS) -> str:
    """All stored reports, in the order of their file names."""
    reports = [load(path) for path in sorted(results.glob("*.json"))]
    return "\n\n".join(map(report_markdown, reports)) or "No results are stored yet."


def _memory_cell(result: MemoryResult | None) -> str:
    if result is None or result.total_bytes is None:
        return "WRONG" if result is not None and result.reason == "WRONG" else "—"
    return f"{result.total_bytes / MIB:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    return block_command(
        arguments,
        program="python -m fused_attention.benchmarks.table",
        description="Print the stored benchmark results, or keep README's table equal to them.",
        marker=README_MARKER,
        make_block=stored_markdown,
    )


if __name__ == "__main__":
    sys.exit(main())
