"""make gpu: everything that needs a GPU, in at most SECONDS, with or without network.

    make gpu                       8 minutes; results in gpu-report/
    make gpu SECONDS=240 OUT=/tmp/report
    make gpu DRY_RUN=1             print the plan, run nothing; needs no GPU

What is built is either carried along (`make cuda` on any machine leaves a folder, CARRY) or made
here by `make setup` for the GPUs that this machine has. Every step has a budget and a log of its
own and does not depend on how the others end. With little time the least important steps are
dropped. The exit status is 0 if nothing failed: skipped and dropped steps are named in the table
that is printed last, with the reason, and in report.json.

This package imports nothing but the standard library, except what runs in processes of its own:
calls.py, repeat.py, bench.py and progress.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu_run import carry, report
from gpu_run.context import Context
from gpu_run.machine import machine_facts
from gpu_run.plan import plan
from gpu_run.runner import Runner
from gpu_run.session import run_session
from gpu_run.steps import steps

LONGEST_S = 480.0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu_run", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=LONGEST_S, help="for all of it")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="results and logs")
    parser.add_argument("--carry", type=Path, default=Path("build/carry"), help="what was built")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")
    parser.add_argument(
        "--prepare",
        metavar="PYTHON",
        help="instead: complete CARRY, which holds a wheel, for runners with that Python (3.12)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if nothing failed, 2 for wrong arguments."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not 0.0 < options.seconds <= LONGEST_S:
        parser.error(f"--seconds: must be in (0, {LONGEST_S:g}], got {options.seconds:g}")
    root = Path(__file__).resolve().parents[2]
    if options.prepare:
        return carry.prepare(root, options.carry, options.prepare)
    why_not = carry.why_not_carried(root, options.carry)
    todo = steps(carried=why_not is None)
    if options.dry_run:
        print(report.plan_table(plan(todo, options.seconds), why_not))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    runner = Runner(options.seconds)
    context = Context(
        root=root,
        out=options.out.resolve(),
        carry=options.carry.resolve(),
        runner=runner,
        machine=machine_facts(),
        environment=dict(os.environ),
    )
    results = run_session(todo, context)
    report.write(results, context)
    print(report.table(results, runner.elapsed(), context.out))
    return 1 if report.failed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
