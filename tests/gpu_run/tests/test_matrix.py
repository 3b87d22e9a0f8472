"""pytest under the program: tests that fail, crash the process, hang or run out of time."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from gpu_run import matrix, progress, runner
from gpu_run.context import FAILED, OK, SKIPPED, Context
from gpu_run.matrix import Progress, judge, run_matrix
from gpu_run.runner import Runner

TESTS = Path(__file__).resolve().parents[2]
TOY = """
import os
import pytest
@pytest.mark.gpu
@pytest.mark.parametrize("what", {whats})
def test_toy(what):
    if what == "crash": os.kill(os.getpid(), 9)
    assert what != "fail", "it failed"
@pytest.mark.gpu
@pytest.mark.skip
def test_skipped(): pass
def test_of_something_else(): assert False
"""


@pytest.fixture
def toy(tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch):
    """run(*whats): the step's result for toy tests that pass, fail or crash."""
    monkeypatch.setattr(runner, "GRACE_S", 0.3)
    root = tmp_path / "checkout"
    (root / "tests").mkdir(parents=True)
    (root / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\n")
    context.root, context.runner, context.python = root, Runner(100.0), sys.executable
    context.environment = {**os.environ, "PYTHONPATH": str(TESTS)}

    def run(*whats: str, source: str = TOY):
        (root / "tests" / "test_toy.py").write_text(source.format(whats=list(whats)))
        return run_matrix(context, 60.0)

    return run


def test_a_crash_does_not_hide_the_other_tests(toy):
    result = toy("pass", "crash", "fail", "pass_too")
    assert result.status == FAILED
    wanted = {"passed": 2, "crashed": 1, "failed": 1, "skipped": 1}
    assert result.data["counts"] == wanted
    assert {test.partition("::")[2]: why[0] for test, why in result.data["bad"].items()} == {
        "test_toy[crash]": "crashed",
        "test_toy[fail]": "failed",
    }
    assert any("it failed" in message for _, message in result.data["bad"].values())


def test_passed_tests_are_a_success_and_none_is_not(toy):
    result = toy("pass", "pass_too")
    assert (result.status, result.what) == (OK, "2 passed, 1 skipped")
    nothing = toy(source="def test_of_something_else(): pass  # not mark.gpu")
    assert (nothing.status, nothing.what) == (FAILED, "no test was collected")
    assert toy(source="").what == "no file has tests that are marked gpu"
    broken = toy(source="import no_such_module  # mark.gpu")
    assert broken.status == FAILED and "test_toy.py" in broken.what


def test_pytest_begins_again_after_a_hang_and_does_not_try_for_ever(context, monkeypatch):
    runs = []

    def hangs_in_two_tests(context: Context, files: list[Path], path: Path, left: float) -> bool:
        runs.append(left)
        context.runner.now += 20.0
        known = Progress.read(path.read_text().splitlines()).outcomes
        events = [{"event": "collected", "count": 9 - len(known)}]
        if len(known) < 2:
            events.append({"event": "begin", "test": f"{len(known)}"})
        with path.open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)
        return True

    monkeypatch.setattr(matrix, "_run_pytest", hangs_in_two_tests)
    result = run_matrix(context, 200.0)
    assert runs == [200.0, 180.0, 160.0], "the third has brought nothing new"
    assert result.status == FAILED
    assert result.data["counts"] == {"hung": 2, "not reached": 7}


def test_the_files_with_tests_for_gpus_are_found():
    names = {path.relative_to(TESTS).as_posix() for path in matrix.gpu_test_files(TESTS)}
    assert {"backends/test_accuracy.py", "backends/test_gpu_features.py"} <= names
    assert {"backends/test_gpu_decode.py", "cuda/test_gpu_decode.py"} <= names
    assert names.isdisjoint({"test_masks.py", "test_compile.py"})


def test_out_of_time_tells_what_was_not_reached():
    lines = [{"event": "collected", "count": 9}, {"event": "begin", "test": "a"}]
    lines += [{"event": "end", "test": "a", "outcome": "passed", "message": ""}]
    done = [*lines, {"event": "exit", "ending": "time"}]
    result = judge(Progress.read(map(json.dumps, done)))
    assert (result.status, result.what) == (OK, "1 passed, 8 not reached")
    assert judge(Progress.read(map(json.dumps, lines))).status == FAILED, "it broke off"
    assert Progress.read(['{"event": "coll']).collected == 0, "half a line"


def test_time_and_a_dead_gpu_end_the_session(tmp_path, monkeypatch):
    class Item:
        nodeid = "test"

        class session:  # noqa: N801
            shouldstop = False

    def end(stop_after: float, outcome: str) -> tuple[str, bool]:
        plugin = progress.Progress(tmp_path / "progress", stop_after)
        hook = plugin.pytest_runtest_protocol(Item)
        next(hook)
        plugin.outcome = outcome
        next(hook, None)
        return plugin.ending, bool(Item.session.shouldstop)

    assert end(100.0, "passed") == ("complete", False)
    assert end(100.0, "failed") == ("complete", False), "the GPU still answers"
    assert end(-1.0, "passed") == ("time", True)
    monkeypatch.setattr(progress, "gpu_is_dead", lambda: True)
    assert end(100.0, "failed") == ("dead", True)


def test_without_pytest_the_command_line_s_check_runs(context):
    context.modules["pytest"] = False
    context.runner.gives("fused_attention.cli")
    result = run_matrix(context, 60.0)
    assert result.status == SKIPPED and "without pytest" in result.what
    context.runner.gives("fused_attention.cli", code=1)
    assert run_matrix(context, 60.0).status == FAILED
