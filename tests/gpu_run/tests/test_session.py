"""Whole sessions without a GPU: what each step runs, and what becomes of its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_run import machine, report
from gpu_run import steps as all_steps
from gpu_run.__main__ import main
from gpu_run.context import DROPPED, FAILED, OK, SKIPPED, Context, Result, Step
from gpu_run.session import run_session
from gpu_run.steps import sanitize

ROOT = Path(__file__).resolve().parents[3]
LINE = {"name": "one", "ok": True, "message": ""}
CALLS = {"backends": ["cuda_x"], "reasons": {}, "load_errors": [], "lines": [LINE]}
REPEATS = {"lines": [{"name": "one", "repeats": 250, "differing": 0}]}
REPLAY = {"cases": [{"device": "agrees"}, {"device": "not for this GPU"}]}
CLEAN = "========= ERROR SUMMARY: 0 errors\n"


def step(name: str, status: str = OK, least_s: float = 1.0, **options) -> Step:
    return Step(name, name, least_s, 10.0, lambda c, limit_s: Result(status, name), **options)


def states(ended) -> list[str]:
    return [one.result.status for one in ended]


def test_a_step_fails_alone(context):
    def raises(context: Context, limit_s: float) -> Result:
        raise ValueError("a mistake")

    wrong = Step("wrong", "raise", 1.0, 10.0, raises, needs=())
    todo = [wrong, step("a", needs=()), step("b", needs=("wrong",)), step("c", needs=("b", "a"))]
    ended = run_session(todo, context)
    assert states(ended) == [FAILED, OK, SKIPPED, SKIPPED]
    assert ended[0].result.what == "ValueError: a mistake"
    assert "Traceback" in (context.out / "wrong.log").read_text()
    assert ended[2].result.what == "wrong did not succeed"
    told = json.loads((context.out / report.REPORT).read_text())
    assert told["failed"] and [one["status"] for one in told["steps"]] == states(ended)


def test_a_step_without_its_least_time_is_dropped_with_a_reason(context):
    def slow(context: Context, limit_s: float) -> Result:
        context.runner.now += 996.0
        return Result(OK, "")

    ended = run_session([Step("slow", "", 1.0, 1000.0, slow, ()), step("b", needs=())], context)
    assert states(ended) == [OK, DROPPED]
    assert ended[1].result.what == "takes 1 s or more, 4 s were left"
    assert not report.failed(ended)
    table = report.table(ended, 995.0, context.out)
    assert table.splitlines()[-1].startswith("nothing failed in 995 s")
    assert "takes 1 s or more" in table


def test_nothing_done_is_a_failure():
    assert report.failed([report.Ended(step("a"), Result(SKIPPED, ""), None, 0.0)])
    assert report.failed([])


def whole_session(context: Context, monkeypatch: pytest.MonkeyPatch, **answers):
    """All steps but install and pytest, each of which has tests of its own."""
    monkeypatch.setattr(all_steps, "install", lambda c, limit_s: Result(OK, "installed"))
    monkeypatch.setattr(all_steps, "run_matrix", lambda c, limit_s: Result(OK, "1 passed"))
    runner = context.runner
    runner.gives("compute-sanitizer", CALLS, prints=CLEAN)
    runner.gives("gpu_run.calls", CALLS)
    runner.gives("gpu_run.repeat", REPEATS)
    runner.gives("gpu_run.bench", {"summary": "fast"})
    runner.gives("ptxsim.conformance", REPLAY)
    for part, options in answers.items():
        runner.gives(part.replace("__", ".").replace("_san", "-san"), **options)
    return {one.step.name: one for one in run_session(all_steps.steps(carried=True), context)}


def test_a_session_where_all_is_right(context, monkeypatch):
    ended = whole_session(context, monkeypatch)
    bad = {name: one.result for name, one in ended.items() if one.result.status != OK}
    assert not bad
    assert ended["conformance"].result.what.startswith("1 of 1 kernels agree, 1 are for another")
    assert "250 times" in ended["races"].result.what
    assert ended["memcheck"].result.what == "ERROR SUMMARY: 0 errors"
    assert sum(one.limit_s for one in ended.values()) > 200
    tools = [c[c.index("--tool") + 1] for c in context.runner.commands if "--tool" in c]
    assert tools == ["memcheck", "synccheck", "racecheck"]
    for command, environment in zip(
        context.runner.commands, context.runner.environments, strict=True
    ):
        assert ("--tool" in command) == ("PYTORCH_NO_CUDA_MEMORY_CACHING" in environment)
    assert not report.failed(list(ended.values()))


@pytest.mark.parametrize(
    ("name", "answers", "told"),
    [
        ("smoke", {"gpu_run__calls": {"code": 1}}, "exit status 1"),
        ("smoke", {"gpu_run__calls": {"data": {**CALLS, "backends": []}}}, "no backend runs here"),
        ("smoke", {"gpu_run__calls": {"data": {**CALLS, "load_errors": ["x.so"]}}}, "x.so; cuda_x"),
        (
            "smoke",
            {"gpu_run__calls": {"data": {**CALLS, "lines": [{**LINE, "ok": False}]}, "code": 1}},
            "1 calls, 1 wrong",
        ),
        (
            "races",
            {"gpu_run__repeat": {"data": {"lines": [{**REPEATS["lines"][0], "differing": 3}]}}},
            "1 differ ['one']",
        ),
        ("races", {"gpu_run__repeat": {"data": {"lines": []}}}, "0 calls"),
        ("races", {"gpu_run__repeat": {"ending": "time"}}, "killed"),
        ("memcheck", {"compute_sanitizer": {"data": CALLS, "ending": "hung"}}, "after 1 calls"),
        ("memcheck", {"compute_sanitizer": {"data": CALLS}}, "gave no summary"),
        (
            "racecheck",
            {"compute_sanitizer": {"code": 86, "prints": "= RACECHECK SUMMARY: 1 hazard\n"}},
            "RACECHECK SUMMARY: 1 hazard",
        ),
        ("benchmark", {"gpu_run__bench": {"data": {"summary": "x WRONG"}, "code": 1}}, "WRONG"),
        ("benchmark", {"gpu_run__bench": {"code": 1, "prints": "out of memory\n"}}, "1: out of"),
        ("conformance", {"ptxsim__conformance": {"code": 3}}, "exit status 3"),
        ("conformance", {"ptxsim__conformance": {"data": {"cases": []}}}, "0 of 0 kernels"),
    ],
)
def test_what_a_failure_says(context, monkeypatch, name, answers, told):
    ended = whole_session(context, monkeypatch, **answers)
    assert ended[name].result.status == FAILED
    assert told in ended[name].result.what
    assert report.failed(list(ended.values()))
    assert f"(see {name}.log)" in report.table(list(ended.values()), 1.0, context.out)


def test_without_compute_sanitizer_its_steps_are_skipped(context):
    context.machine["compute_sanitizer"] = None
    result = sanitize(context, 60.0, "memcheck")
    assert (result.status, result.what) == (SKIPPED, "compute-sanitizer was not found")


def test_gpus_are_read_from_nvidia_smi():
    table = "Some GPU, 580.1, 9.0, 80000 MiB, 1980 MHz, 700.00 W, Disabled\n"
    (gpu,) = machine.gpus(lambda command: table)
    assert (gpu["name"], gpu["compute_cap"]) == ("Some GPU", "9.0")
    assert machine.gpus(lambda command: "") == []
    assert machine.gpus(lambda command: "No devices were found\n") == []
    assert machine.output_of(["/no/such/program"]) == ""


def test_dry_run_by_make_prints_the_plan_and_runs_nothing(tmp_path):
    command = ["make", "-s", "gpu", "DRY_RUN=1", "SECONDS=240", f"OUT={tmp_path / 'out'}"]
    done = subprocess.run(
        [*command, f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    names = [one.name for one in all_steps.steps(carried=True)]
    assert [line.split()[0] for line in lines[1 : 1 + len(names)]] == names
    assert "dropped" in done.stdout
    assert not (tmp_path / "out").exists()


def test_the_program_without_a_gpu_fails_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gpu_run.__main__.machine_facts", lambda: {"gpus": [], "cores": 1})
    assert main(["--out", str(tmp_path / "out"), "--carry", str(tmp_path)]) == 1
    assert "nvidia-smi shows no GPU" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / report.REPORT).read_text())
    assert told["failed"] and {one["status"] for one in told["steps"]} == {FAILED, SKIPPED}


@pytest.mark.parametrize("seconds", ["0", "-3", "481", "nan"])
def test_times_that_cannot_be(seconds, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--seconds", seconds])
    assert stop.value.code == 2
    assert "--seconds: must be in (0, 480]" in capsys.readouterr().err
