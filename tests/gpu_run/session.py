"""Runs the steps one after the other, whatever becomes of them."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from gpu_run import report
from gpu_run.context import DROPPED, FAILED, OK, SKIPPED, Context, Result, Step
from gpu_run.plan import limit
from gpu_run.report import Ended


def run_session(steps: Sequence[Step], context: Context) -> list[Ended]:
    """Every step's result, in order. The report is written after each: a kill leaves the last."""
    ended: list[Ended] = []
    for index, step in enumerate(steps):
        begin = context.runner.elapsed()
        limit_s = limit(steps[index:], context.runner.left())
        missing = [e for e in ended if e.step.name in step.needs and e.result.status != OK]
        if missing:
            result = Result(SKIPPED, f"{missing[0].step.name} did not succeed")
        elif limit_s is None:
            left = max(0.0, context.runner.left())
            result = Result(DROPPED, f"takes {step.least_s:.0f} s or more, {left:.0f} s were left")
        else:
            print(f"{step.name}: {step.does} (at most {limit_s:.0f} s)", flush=True)
            result = _guarded(step, context, limit_s)
        ended.append(Ended(step, result, limit_s, context.runner.elapsed() - begin))
        report.write(ended, context)
    return ended


def _guarded(step: Step, context: Context, limit_s: float) -> Result:
    """The step's result; a mistake in the step itself is its failure."""
    try:
        return step.run(context, limit_s)
    except Exception as error:
        with (context.out / f"{step.name}.log").open("a") as log:
            traceback.print_exc(file=log)
        return Result(FAILED, f"{type(error).__name__}: {error}")
