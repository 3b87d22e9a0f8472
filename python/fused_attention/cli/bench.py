"""fused-attention bench: ours against the naive formula and torch SDPA, same inputs, same run."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fused_attention import arguments as types
from fused_attention.benchmarks import cases, table
from fused_attention.benchmarks.headlines import headlines
from fused_attention.benchmarks.run import Report, Settings, judged_right, save
from fused_attention.benchmarks.run import run as run_set
from fused_attention.cli.output import Output, UsageError, require

FULL_WIDTH = 100  # of a terminal that has room for all columns
REPORT_NAME = "bench.json"


def add_parser(commands: types.Subparsers) -> None:
    parser = types.add_command(
        commands,
        "bench",
        "time every contender on the same inputs in turns, after checking its numbers",
        "fused-attention bench --set cpu --threads 1,2 --dtype fp32 --out results",
        run,
    )
    sets = tuple(cases.CASE_SETS)
    parser.add_argument("--set", choices=sets, default="demo", help="of cases (default: demo)")
    parser.add_argument(
        "--threads",
        type=types.positive_ints,
        default=(),
        metavar="N[,N]",
        help="torch's thread counts to run with (default: as many as it uses)",
    )
    parser.add_argument(
        "--dtype",
        type=types.dtypes,
        metavar="NAME[,NAME]",
        help=f"of {', '.join(types.DTYPES)} (default: the set's own)",
    )
    parser.add_argument(
        "--seconds",
        type=types.non_negative,
        default=2.0,
        help="timing budget per case and pass (default: 2)",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument(
        "--out",
        type=types.output_folder,
        metavar="FOLDER",
        help=f"write {REPORT_NAME} and pictures into this folder",
    )


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    if not 0.0 < arguments.seconds < 3600.0:
        raise UsageError(f"argument --seconds: must be in (0, 3600), got {arguments.seconds}")
    if arguments.out is not None:
        require("matplotlib")  # before minutes of measuring, not after
    settings = Settings(
        set_name=arguments.set,
        dtypes=arguments.dtype,
        threads=arguments.threads,
        seconds=arguments.seconds,
        memory=not arguments.no_memory,
    )
    if settings.needs_gpu and not torch.cuda.is_available():
        raise UsageError(f"argument --set: {arguments.set} needs a GPU, and torch finds none")
    with output.progress(settings.weight) as begin:
        report = run_set(settings, begin)
    show(output, report)
    output.json(report)
    if arguments.out is not None:
        for path in write(report, arguments.out):
            output.line(f"wrote {path}")
    return 0 if judged_right(report) else 1


def show(output: Output, report: Report) -> None:
    """The tables of a report and its headlines."""
    if output.quiet:
        return
    for threads in table.thread_counts(report):
        heading, headers, body = table.time_table(report, threads)
        output.heading(heading)
        rows = [headers, *body]
        if output.width < FULL_WIDTH and headers == table.time_headers(report):
            behind = 3 + len(table.peers_in(report))  # the peers' times, which the ratios tell
            rows = [[*row[:3], *row[behind:]] for row in rows]
        output.table(rows[0], rows[1:], left=2, style=_colour)
    if report["memory"]:
        output.heading(table.MEMORY_HEADING)
        output.table(table.MEMORY_HEADERS, table.memory_rows(report), left=2, style=_colour)
    for reason in table.unmeasured_memory(report):
        output.line(reason)
    if any(table.is_noisy(result) for result in report["results"]):
        output.line(table.NOISE_NOTE)
    output.heading("In short")
    for line in headlines(report):
        output.line(f"- {line}")


def write(report: Report, folder: Path) -> list[Path]:
    """Save a report with its pictures and return what was written."""
    from fused_attention.benchmarks.pictures import save_pictures  # needs matplotlib

    path = folder / REPORT_NAME
    try:
        save(report, path)
        return [path, *save_pictures(report, folder)]
    except OSError as error:
        raise UsageError(f"argument --out: cannot write {folder}: {error.strerror}") from None


def _colour(cell: str) -> str | None:
    return "bold red" if cell in ("WRONG", "failed") else None
