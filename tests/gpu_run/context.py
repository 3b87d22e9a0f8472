"""What a step is, what it gets and what it gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gpu_run.runner import Outcome, Runner

OK, FAILED, SKIPPED, DROPPED = "ok", "FAILED", "skipped", "dropped"


@dataclass
class Context:
    """Where a session runs and what it has found out so far."""

    root: Path  # of the checkout
    out: Path
    carry: Path
    runner: Runner
    machine: dict[str, Any]
    environment: dict[str, str]  # of the processes
    python: str = sys.executable  # once installed: the one that imports fused_attention
    modules: dict[str, bool] = field(default_factory=dict)  # what that one can import

    def call(self, name: str, command: Sequence[str], limit_s: float, **options: Any) -> Outcome:
        """Run a command in tests/, its output in NAME.log."""
        return self.runner.run(
            command,
            self.out / f"{name}.log",
            limit_s,
            self.environment,
            self.root / "tests",
            **options,
        )

    def module(
        self, name: str, module: str, limit_s: float, *arguments: object, **options: Any
    ) -> Outcome:
        """Run a Python module by the installed Python, its output in NAME.log."""
        return self.call(
            name, [self.python, "-m", module, *map(str, arguments)], limit_s, **options
        )

    def fresh(self, name: str) -> Path:
        """A file in the output folder that does not exist yet."""
        path = self.out / name
        path.unlink(missing_ok=True)
        return path


class Result(NamedTuple):
    """How a step ended: OK, FAILED, SKIPPED or DROPPED, and in a few words why."""

    status: str
    what: str
    data: Any = None  # for the report


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        least_s: with less it is not begun.
        most_s: more is of no use.
        needs: names of the steps without whose success there is nothing to do.
    """

    name: str
    does: str
    least_s: float
    most_s: float
    run: Callable[[Context, float], Result]
    needs: tuple[str, ...] = ("machine", "install")
