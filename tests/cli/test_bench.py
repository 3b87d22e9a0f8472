"""fused-attention bench and demo on a benchmark that takes no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fused_attention.benchmarks import contenders, run
from fused_attention.benchmarks.cases import Case, Inputs
from fused_attention.benchmarks.contenders import OURS, Contender
from fused_attention.cli import check, demo
from fused_attention.cli.check_cases import CHECK_CASES

pytestmark = pytest.mark.usefixtures("tiny_benchmark")
QUICK = ("--seconds", "0.01")


def test_tables_headlines_and_json(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    outcome = command("bench", *QUICK, "--threads", "1,2", "--json", path)
    assert outcome.code == 0
    report = run.load(path)
    assert {r["threads"] for r in report["results"]} == {1, 2}
    for expected in ("Time, 1 thread\n", "Time, 2 threads", "SDPA", "In short", "against"):
        assert expected in outcome.out
    assert all(result["name"] in outcome.out for result in report["results"])


def test_json_on_standard_output_is_alone(command: Any) -> None:
    outcome = command("bench", *QUICK, "--dtype", "fp64", "--no-memory", "--json", "-")
    report = json.loads(outcome.out)
    assert outcome.err == ""
    assert {r["case"]["dtype"] for r in report["results"]} == {"fp64"}


def test_out_gets_report_and_pictures(command: Any, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    outcome = command("bench", *QUICK, "--out", folder)
    assert outcome.code == 0
    assert sorted(p.name for p in folder.iterdir()) == ["bench.json", "masks.png", "time.png"]
    assert f"wrote {folder / 'time.png'}" in outcome.out


def test_a_set_for_gpus_needs_one(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = command("bench", "--set", "cuda-quick", *QUICK)
    assert outcome.code == 2
    assert "argument --set: cuda-quick needs a GPU, and torch finds none" in outcome.err


def test_wrong_kernel_ends_in_failure(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case: Case, inputs: Inputs) -> Tensor:
        return contenders.ours(case, inputs) + 1.0

    monkeypatch.setattr(run, "CONTENDERS", (Contender(OURS, wrong), *contenders.CONTENDERS[1:]))
    outcome = command("bench", *QUICK)
    assert outcome.code == 1
    assert "WRONG" in outcome.out
    assert "NOT TIMED: fused_attention" in outcome.out


def test_demo_writes_everything_it_names(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "SECONDS_PER_CASE", 0.01)
    monkeypatch.setattr(check, "CHECK_CASES", CHECK_CASES[:2])
    monkeypatch.chdir(tmp_path)
    outcome = command("demo", "--json", "demo.json")
    assert outcome.code == 0
    folder = tmp_path / demo.DEFAULT_FOLDER
    names = ["bench.json", "check.json", "info.json", "masks.png", "time.png"]
    assert sorted(p.name for p in folder.iterdir()) == names
    for expected in ("This machine", "checks passed", "naive", "In short", "Written in"):
        assert expected in outcome.out
    for name in names:
        assert str(demo.DEFAULT_FOLDER / name) in outcome.out
    told = json.loads(Path("demo.json").read_text())
    assert told["check"]["passed"]
    assert told["bench"]["results"]
    assert told["info"] == json.loads((folder / "info.json").read_text())
