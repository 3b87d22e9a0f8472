"""The step `matrix`: pytest, begun again after a test that takes the process or the GPU with it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_run.context import FAILED, OK, SKIPPED, Context, Result

PROGRESS = "matrix.jsonl"
SILENCE_S = 75.0  # longest time between two tests; the first compilation by Triton takes long
SHOWN = 5
# What a file with tests for GPUs has in it. Others are not even imported: they may need tools that
# a runner lacks.
GPU_WORDS = re.compile(r"mark\.gpu|gpu_backend|from places import .*\bmatrix\b")
BAD = ("failed", "crashed", "hung")


@dataclass
class Progress:
    """What progress.py has written: how each test ended."""

    outcomes: dict[str, str] = field(default_factory=dict)  # test -> passed, failed, ..., "begun"
    messages: dict[str, str] = field(default_factory=dict)
    collected: int = 0  # by the first run of pytest, which sees all tests
    ending: str = ""  # of the last run: "complete", "time", "dead"; "": it has not come to its end

    @classmethod
    def read(cls, lines: Iterable[str]) -> Progress:
        progress = cls()
        for line in lines:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a process that was killed
            kind = event["event"]
            if kind == "collected":
                progress.collected = progress.collected or event["count"]
                progress.ending = ""
            elif kind == "begin":
                progress.outcomes[event["test"]] = "begun"
            elif kind == "end":
                progress.outcomes[event["test"]] = event["outcome"]
                progress.messages[event["test"]] = event["message"]
            elif kind == "lost":  # written by this step
                progress.outcomes[event["test"]] = event["outcome"]
            elif kind == "exit":
                progress.ending = event["ending"]
        return progress

    @property
    def begun(self) -> list[str]:
        return [test for test, outcome in self.outcomes.items() if outcome == "begun"]

    def counts(self) -> dict[str, int]:
        counts = Counter(self.outcomes.values())
        counts["not reached"] = max(0, self.collected - len(self.outcomes))
        return {outcome: n for outcome, n in counts.items() if n}

    def bad(self) -> list[str]:
        return [test for test, outcome in self.outcomes.items() if outcome in BAD]

    def as_dict(self) -> dict[str, Any]:
        bad = {test: [self.outcomes[test], self.messages.get(test, "")] for test in self.bad()}
        return {"collected": self.collected, "counts": self.counts(), "bad": bad}


def run_matrix(context: Context, limit_s: float) -> Result:
    missing = [m for m in ("pytest", "hypothesis") if not context.modules.get(m)]
    if missing:
        return check_instead(context, limit_s, missing)
    files = gpu_test_files(context.root / "tests")
    if not files:
        return Result(FAILED, "no file has tests that are marked gpu")
    path = context.fresh(PROGRESS)
    path.touch()
    end = context.runner.elapsed() + limit_s
    while True:
        before = _read(path)
        left = end - context.runner.elapsed()
        if left < 10.0:
            break
        hung = _run_pytest(context, files, path, left)
        after = _read(path)
        for test in after.begun:
            lost = {"event": "lost", "test": test, "outcome": "hung" if hung else "crashed"}
            with path.open("a") as file:
                file.write(json.dumps(lost) + "\n")
        if after.ending in ("complete", "time") or len(after.outcomes) == len(before.outcomes):
            break
    return judge(_read(path))


def gpu_test_files(tests: Path) -> list[Path]:
    """The files below `tests` in which there may be tests for GPUs."""
    own = Path(__file__).resolve().parent
    found = [path for path in sorted(tests.rglob("test_*.py")) if own not in path.parents]
    return [path for path in found if GPU_WORDS.search(path.read_text())]


def _run_pytest(context: Context, files: list[Path], path: Path, left: float) -> bool:
    """One run of pytest over the tests that have not been begun; True if it had to be killed."""
    context.environment["GPU_RUN_PROGRESS"] = str(path)
    context.environment["GPU_RUN_STOP_AFTER"] = str(left - 8.0)
    options = ["-m", "gpu", "-p", "gpu_run.progress", "--no-header", "--tb=short", "-q"]
    options += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    options += map(str, files)
    outcome = context.module(
        "matrix", "pytest", left, *options, sign_of_life=path, silence_s=SILENCE_S
    )
    return outcome.ending != "exit"


def judge(progress: Progress) -> Result:
    """A run without a single passed test, or one that broke off, has failed."""
    counts = progress.counts()
    what = ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "no test was collected"
    bad = progress.bad()
    if bad:
        what += f": {', '.join(test.rpartition('/')[2] for test in bad[:SHOWN])}"
    right = not bad and "passed" in counts and progress.ending in ("complete", "time")
    return Result(OK if right else FAILED, what, progress.as_dict())


def check_instead(context: Context, limit_s: float, missing: list[str]) -> Result:
    """Without pytest: the command line's own comparison of every backend with the reference."""
    arguments = ["check", "--json", "-"]  # to the log: tables would need the package rich
    outcome = context.module("matrix", "fused_attention.cli", limit_s, *arguments)
    why = f"without {' and '.join(missing)}, fused-attention check instead"
    if not outcome.ok:
        return Result(FAILED, f"{why}: it FAILED")
    return Result(SKIPPED, f"{why}: it passed")


def _read(path: Path) -> Progress:
    return Progress.read(path.read_text().splitlines())
