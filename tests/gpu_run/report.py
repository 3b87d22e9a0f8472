"""The plan and the results as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpu_run.context import DROPPED, FAILED, OK, SKIPPED, Context, Result, Step

if TYPE_CHECKING:
    from gpu_run.plan import Share

SCHEMA = 1
REPORT = "report.json"
WIDEST_CELL = 150


class Ended(NamedTuple):
    """A step that is over."""

    step: Step
    result: Result
    limit_s: float | None
    seconds: float


def failed(results: Sequence[Ended]) -> bool:
    """Whether anything failed, or nothing at all was done."""
    states = [ended.result.status for ended in results]
    return FAILED in states or OK not in states


def rows_as_text(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns."""
    cut = [[cell[:WIDEST_CELL] for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    padded = (zip(row, widths, strict=True) for row in cut)
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in row).rstrip() for row in padded)


def plan_table(shares: Sequence[Share], why_not_carried: str | None) -> str:
    """What would be run, with the most that each step may take."""
    rows = [("step", "seconds", "what it does")]
    for step, limit_s in shares:
        seconds = "dropped" if limit_s is None else f"{limit_s:.0f}"
        rows.append((step.name, seconds, step.does))
    total = sum(limit_s or 0.0 for _, limit_s in shares)
    built = "has been built" if why_not_carried is None else f"is built there: {why_not_carried}"
    return f"{rows_as_text(rows)}\nat most {total:.0f} s in all; the package {built}"


def table(results: Sequence[Ended], seconds: float, out: Path) -> str:
    """How every step ended; what failed comes with its log."""
    rows = [("step", "result", "seconds", "what")]
    for step, result, _, took in results:
        what = " ".join(result.what.split())
        if result.status == FAILED and (out / f"{step.name}.log").exists():
            what = what[: WIDEST_CELL - 30] + f" (see {step.name}.log)"
        ran = result.status not in (SKIPPED, DROPPED)
        rows.append((step.name, result.status, f"{took:.1f}" if ran else "-", what))
    verdict = "something FAILED" if failed(results) else "nothing failed"
    return f"\n{rows_as_text(rows)}\n{verdict} in {seconds:.0f} s; logs and JSON in {out}"


def write(results: Sequence[Ended], context: Context) -> None:
    """report.json, complete up to the last step that is over."""
    steps = [
        {
            "name": step.name,
            "status": result.status,
            "what": result.what,
            "limit_s": limit_s,
            "seconds": round(took, 2),
            "data": result.data,
        }
        for step, result, limit_s, took in results
    ]
    text = json.dumps(
        {
            "schema": SCHEMA,
            "failed": failed(results),
            "seconds": round(context.runner.elapsed(), 1),
            "seconds_allowed": context.runner.seconds,
            "machine": context.machine,
            "steps": steps,
        },
        indent=1,
    )
    (context.out / REPORT).write_text(text + "\n")
