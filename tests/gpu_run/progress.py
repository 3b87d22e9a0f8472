"""A pytest plugin: notes down every test as it begins and ends, and stops in time.

    GPU_RUN_PROGRESS=FILE [GPU_RUN_STOP_AFTER=SECONDS] pytest -p gpu_run.progress

A kernel may take the process with it, or leave a GPU that answers every later call with the same
error. So FILE is complete at any time, tests that it names are not begun again, and the session
ends after the test that killed the GPU.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest


class Progress:
    """The plugin.

    Args:
        path: one JSON object per line is appended.
        stop_after: seconds after which no further test is begun.
    """

    def __init__(self, path: Path, stop_after: float) -> None:
        self.path = path
        self.end = time.monotonic() + stop_after
        self.ending = "complete"
        self.outcome, self.message, self.seconds = "passed", "", 0.0

    def note(self, event: str, **values: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        known = {json.loads(line).get("test") for line in lines}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
        items[:] = [item for item in items if item.nodeid not in known]
        self.note("collected", count=len(items))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:  # a file that cannot be imported counts as a failed test
            message = report.longreprtext.strip().splitlines()[-1][:300]
            self.note("end", test=report.nodeid, outcome="failed", seconds=0, message=message)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.outcome, self.message, self.seconds = "passed", "", 0.0
        self.note("begin", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        if self.outcome != "failed" and not report.passed:
            self.outcome = report.outcome
            text = report.longreprtext.strip().splitlines() or [""]
            errors = [line for line in text if line.startswith("E ")]
            self.message = (errors or text)[0].removeprefix("E").strip()[:300]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        yield
        seconds = round(self.seconds, 3)
        end = {"outcome": self.outcome, "seconds": seconds, "message": self.message}
        self.note("end", test=item.nodeid, **end)
        if self.outcome == "failed" and gpu_is_dead():
            self.ending, item.session.shouldstop = "dead", "the GPU does not answer any more"
        elif time.monotonic() > self.end:
            self.ending, item.session.shouldstop = "time", "out of time"

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        broken = exitstatus in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR)
        interrupted = exitstatus == pytest.ExitCode.INTERRUPTED and self.ending == "complete"
        self.note("exit", ending="broken" if broken or interrupted else self.ending)


def gpu_is_dead() -> bool:
    """Whether this process's context on the GPU is beyond use, as after an illegal address."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def pytest_configure(config: pytest.Config) -> None:
    stop_after = float(os.environ.get("GPU_RUN_STOP_AFTER", "inf"))
    plugin = Progress(Path(os.environ["GPU_RUN_PROGRESS"]), stop_after)
    config.pluginmanager.register(plugin, "gpu_run_progress")
