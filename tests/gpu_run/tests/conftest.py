"""A session without a GPU: commands that write what they would have written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from gpu_run.context import Context
from gpu_run.runner import Outcome, Runner

GPU = {"name": "Some GPU", "driver_version": "580.1"}


class FakeRunner(Runner):
    """Answers instead of running; `answers` maps a part of a command to what then happens."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.now = 0.0
        super().__init__(seconds, clock=lambda: self.now)
        self.answers: dict[str, Callable[..., Outcome]] = {}
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []

    def run(
        self,
        command: Sequence[str],
        log: Path,
        limit_s: float,
        environment: Mapping[str, str],
        *rest: Any,
        **more: Any,
    ) -> Outcome:
        self.commands.append(list(command))
        self.environments.append(dict(environment))
        with log.open("a") as file:
            file.write(f"$ {' '.join(command)}\n")
        for part, answer in self.answers.items():
            if any(part in word for word in command):
                return answer(command, log)
        return Outcome(1, 0.0)

    def gives(
        self,
        part: str,
        data: Any = None,
        code: int = 0,
        seconds: float = 1.0,
        ending: str = "exit",
        prints: str = "",
    ) -> None:
        """A command with `part` in it writes `data` where --json says, prints and ends so."""

        def answer(command: list[str], log: Path) -> Outcome:
            if data is not None:
                Path(command[command.index("--json") + 1]).write_text(json.dumps(data))
            with log.open("a") as file:
                file.write(prints)
            self.now += seconds
            return Outcome(code, seconds, ending)

        self.answers[part] = answer


@pytest.fixture
def context(tmp_path: Path) -> Context:
    out = tmp_path / "out"
    out.mkdir()
    machine = {"gpus": [GPU], "nvcc": None, "compute_sanitizer": "/x/compute-sanitizer", "cores": 4}
    root = Path(__file__).resolve().parents[3]
    found = Context(root, out, tmp_path / "carry", FakeRunner(), machine, {})
    found.modules = {"pytest": True, "hypothesis": True, "numpy": True}
    return found
