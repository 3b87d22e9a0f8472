"""A tiny set through the whole of run: the report, the gate's effect, the steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fused_attention import Band
from fused_attention.benchmarks import cases, contenders, limits, run
from fused_attention.benchmarks.cases import Case, Inputs, MemoryLadder, square
from fused_attention.benchmarks.contenders import NAIVE, OURS, SDPA, Contender
from fused_attention.benchmarks.run import Settings

TINY = (
    square(1, 2, 32, 16, band=Band.causal(), series="causal"),
    square(1, 2, 48, 16, band=Band.sliding(5), dtype="bf16", backward=False),
)


@pytest.fixture(autouse=True)
def tiny_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.CASE_SETS, "demo", TINY)
    monkeypatch.setattr(limits, "MATRIX_SIZE", 32)
    monkeypatch.setattr(limits, "BLOCK_FLOATS", 1024)
    monkeypatch.setitem(cases.MEMORY_LADDERS, "demo", MemoryLadder((64, 128), peers_up_to=64))


def test_report_is_complete_and_survives_json(tmp_path: Path) -> None:
    settings = Settings(seconds=0.01, threads=(1, 2))
    threads_before = torch.get_num_threads()
    steps: list[tuple[str, float]] = []
    report = run.run(settings, lambda step, weight: steps.append((step, weight)))
    assert torch.get_num_threads() == threads_before
    assert sum(weight for _, weight in steps) == pytest.approx(settings.weight)

    assert [(r["name"], r["direction"], r["threads"]) for r in report["results"]] == [
        (case.name, direction, threads)
        for threads in (1, 2)
        for case in TINY
        for direction in case.directions
    ]
    for result in report["results"]:
        assert {e["status"] for e in result["contenders"].values()} == {"ok"}
        assert result["speedup"].keys() == {NAIVE, SDPA}
        assert result["limit_share"] > 0
        assert result["contenders"][OURS]["accuracy_ratio"] <= 1.0
        assert "loadavg" in result["load"]
    measured = {(m["contender"], m["case"]["len_q"]) for m in report["memory"]}
    assert measured == {(OURS, 64), (NAIVE, 64), (SDPA, 64), (OURS, 128)}
    assert report["machine"]["threads"] == threads_before
    assert run.judged_right(report)

    run.save(report, tmp_path / "new" / "report.json")
    assert run.load(tmp_path / "new" / "report.json") == report


def test_wrong_kernel_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case: Case, inputs: Inputs) -> Tensor:
        return contenders.ours(case, inputs) * 1.1

    monkeypatch.setattr(run, "CONTENDERS", (Contender(OURS, wrong), *contenders.CONTENDERS[1:]))
    report = run.run(Settings(seconds=0.01, memory=False))
    for result in report["results"]:
        assert result["contenders"][OURS]["status"] == "WRONG"
        assert "median_s" not in result["contenders"][OURS]
        assert result["contenders"][SDPA]["status"] == "ok"
        assert result["speedup"] == {}
        assert result["limit_share"] is None
    assert not run.judged_right(report)


def test_contender_that_does_not_fit_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "available_memory", lambda device: 1000)
    report = run.run(Settings(seconds=0.01, memory=False))
    causal, _, window = report["results"]
    assert causal["contenders"][NAIVE]["status"] == "skipped"
    assert "GiB are free" in causal["contenders"][NAIVE]["reason"]
    assert causal["contenders"][SDPA]["status"] == "ok", "its causal mask needs no matrix"
    assert window["contenders"][SDPA]["status"] == "skipped"
    assert causal["speedup"].keys() == {SDPA}
    assert run.judged_right(report)


def test_other_json_is_no_report(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for text in ("[]", "{}", '{"schema": 0}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="must be a benchmark report"):
            run.load(path)


def test_sdpa_gets_a_mask_only_where_it_needs_one() -> None:
    assert not contenders.sdpa_needs_mask(square(1, 1, 8, 4))
    assert not contenders.sdpa_needs_mask(square(1, 1, 8, 4, band=Band.causal()))
    assert not contenders.sdpa_needs_mask(Case(1, 1, 1, 1, 8, 4, band=Band.causal()))
    assert contenders.sdpa_needs_mask(Case(1, 1, 1, 3, 8, 4, band=Band.causal()))
    assert contenders.sdpa_needs_mask(square(1, 1, 8, 4, band=Band.sliding(3)))
