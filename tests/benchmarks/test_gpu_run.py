"""The benchmark of a GPU, run on a CPU: its sets, its contenders, its gate, its table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu_run import bench
from torch.nn.functional import scaled_dot_product_attention

from fused_attention import Band
from fused_attention.benchmarks import cases, gate, gpu_table, limits, run, sample, table
from fused_attention.benchmarks.cases import Case, case_set, decoding, square
from fused_attention.benchmarks.contenders import (
    CUDNN,
    EFFICIENT,
    FLASH,
    MATH,
    OURS,
    Contender,
    sdpa_needs_mask,
)
from fused_attention.benchmarks.cuda_contenders import CUDA_CONTENDERS
from fused_attention.benchmarks.gate import formula_results, judge
from fused_attention.benchmarks.headlines import headlines
from fused_attention.benchmarks.sample import Sample

TINY = (
    square(2, 4, 48, 16, heads_kv=2, band=Band.causal(), dtype="bf16"),
    Case(1, 2, 2, 5, 40, 16, band=Band.causal(), dtype="bf16", backward=False),
)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The set cuda-quick becomes a tiny one whose tensors lie on the CPU, the clock a fake."""
    monkeypatch.setitem(cases.CASE_SETS, "cuda-quick", TINY)
    monkeypatch.setattr(run, "contenders_for", lambda case, set_name: CUDA_CONTENDERS)
    monkeypatch.setattr(limits, "MATRIX_SIZE", 32)
    monkeypatch.setattr(limits, "BLOCK_FLOATS", 1024)


def test_the_set_has_the_published_cases() -> None:
    chosen = case_set("cuda")
    assert len({case.name for case in chosen}) == len(chosen)
    assert {case.device for case in chosen} == {"cuda"}
    assert {case.dtype for case in chosen} == {"bf16", "fp16"}
    assert {64, 128, 256} <= {case.head_dim for case in chosen if case.backward}
    paper = [c for c in chosen if c.batch * c.len_q == 16384 and c.heads_q * c.head_dim == 2048]
    assert len({(c.batch, c.head_dim, c.is_causal) for c in paper}) == 36
    assert any(c.len_q == 1 and c.len_k >= 131072 for c in chosen), "decoding from a long cache"
    assert any(sdpa_needs_mask(c) and c.backward for c in chosen), "sliding windows"
    assert any(c.is_causal and 1 < c.len_q < c.len_k for c in chosen), "chunks of a prompt"
    for case in (*chosen, *case_set("cuda-quick")):
        assert case.io_bytes < 8 * 2**30, "fits beside a flush and gradients on any large GPU"
        assert Case.from_dict(case.as_dict()) == case


def test_the_quick_set_has_one_of_each_kind() -> None:
    quick = case_set("cuda-quick")
    assert len(quick) <= 8
    assert {c.is_causal for c in quick} == {True, False}
    assert any(c.len_q == 1 for c in quick) and any(sdpa_needs_mask(c) for c in quick)


def test_stored_reports_of_before_are_of_cpus() -> None:
    values = square(1, 2, 8, 4).as_dict()
    del values["device"]
    assert Case.from_dict(values).device == "cpu"


def test_torch_is_told_of_causal_masks_on_a_gpu() -> None:
    """No tensor of flags where torch's kernels know the mask; the same numbers as with one."""
    case = dataclasses.replace(TINY[1], device="cuda")
    assert not sdpa_needs_mask(case) and sdpa_needs_mask(TINY[1])
    assert sdpa_needs_mask(decoding(1, 2, 2, 90, band=Band.sliding(9)))
    inputs = dataclasses.replace(TINY[1], dtype="fp32").make_inputs()
    (math,) = [c for c in CUDA_CONTENDERS if c.name == MATH]
    with math.around():
        told = math.attend(case, inputs._replace(mask=None))
    shown = scaled_dot_product_attention(*inputs[:3], attn_mask=inputs.mask)
    torch.testing.assert_close(told, shown)


def test_a_whole_run(on_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that torch does not have are skipped with a reason; the others are compared."""
    monkeypatch.setattr(bench, "CASE_SECONDS", 0.01)
    path = tmp_path / "report.json"
    assert bench.main(["--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert "3 results; " in report["summary"] and report["dropped"] == []
    first = report["results"][0]
    states = {name: entry["status"] for name, entry in first["contenders"].items()}
    assert states == {OURS: "ok", FLASH: "ok", EFFICIENT: "skipped", CUDNN: "skipped", MATH: "ok"}
    assert "torch has no kernel" in first["contenders"][CUDNN]["reason"]
    assert first["speedup"].keys() == {FLASH, MATH}

    heading, headers, rows = table.time_table(report, threads=first["threads"])
    assert heading.startswith("Time, an unknown GPU")
    assert {len(row) for row in rows} == {len(headers)} and len(rows) == 3
    assert rows[0][headers.index("vs cuDNN")] == "—"
    assert rows[0][headers.index("vs flash")].endswith("x")
    assert any("torch's flash-attention" in line for line in headlines(report))
    assert "| vs unfused |" in table.report_markdown(report)


def test_cases_that_are_not_begun_in_time_are_named(on_cpu: None, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert bench.main(["--json", str(path), "--seconds", "0"]) == 1
    report = json.loads(path.read_text())
    assert report["dropped"] == [case.name for case in TINY]
    assert "2 cases not begun in time" in report["summary"]
    assert "NOT TIMED, out of time" in headlines(report)[0]


def test_speed_and_share_of_the_limit() -> None:
    case = dataclasses.replace(TINY[1], device="cuda")
    result = {
        "name": case.name,
        "case": case.as_dict(),
        "direction": "forward",
        "flops": 2e12,
        "contenders": {OURS: {"status": "ok", "median_s": 0.004}},
        "speedup": {FLASH: 1.25},
        "limit_share": 0.5,
    }
    (row,) = gpu_table.gpu_time_rows({"results": [result]})
    assert row[2:] == ["4", "500", "50 %", "1.25x", "—", "—", "—"]
    result["contenders"][OURS] = {"status": "WRONG"}
    (row,) = gpu_table.gpu_time_rows({"results": [result]})
    assert row[2:4] == ["WRONG", "—"]


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Case:
    """A case of twelve key heads that counts as large, and as one of a GPU."""
    case = square(3, 8, 20, 8, heads_kv=4, band=Band.causal())
    monkeypatch.setattr(sample, "MOST_PAIRS", 10)
    of = Sample.of
    large = dataclasses.replace(case, device="cuda")
    monkeypatch.setattr(gate.Sample, "of", staticmethod(lambda case: _here(of(large))))
    return case


def _here(found: Sample) -> Sample:
    return dataclasses.replace(found, case=dataclasses.replace(found.case, device="cpu"))


def test_a_sample_is_a_part_of_the_whole(sampled: Case) -> None:
    part = gate.Sample.of(sampled)
    assert part.heads == (0, 3, 7, 11)
    inputs = sampled.make_inputs()
    whole = formula_results(sampled, inputs, torch.float64)
    few = formula_results(part.case, part.inputs(inputs), torch.float64)
    for name, values in part.results(whole).items():
        torch.testing.assert_close(values, few[name])
    assert few["out"].shape == (4, 2, 20, 8) and few["dk"].shape == (4, 1, 20, 8)


def test_only_large_cases_of_gpus_are_sampled() -> None:
    assert Sample.of(square(64, 64, 4096, 64)).heads is None
    assert Sample.of(dataclasses.replace(TINY[0], device="cuda")).heads is None
    assert Sample.of(case_set("cuda-quick")[0]).heads is not None


@pytest.mark.parametrize(("head", "seen"), [(0, True), (7, True), (5, False)])
def test_the_gate_sees_mistakes_in_the_sampled_heads(sampled: Case, head: int, seen: bool) -> None:
    def wrong(case: Case, inputs: cases.Inputs) -> torch.Tensor:
        out = scaled_dot_product_attention(*inputs[:3], is_causal=True, enable_gqa=True)
        shift = torch.zeros_like(out)
        shift[head // 4, head % 4 * 2 + 1, -1] = 0.1
        return out + shift

    (verdict,) = judge(sampled, sampled.make_inputs(), [Contender(OURS, wrong)]).values()
    assert verdict.right != seen


def test_what_peers_cannot_do_is_skipped_and_what_ours_cannot_is_a_failure() -> None:
    def unable(case: Case, inputs: cases.Inputs) -> torch.Tensor:
        raise NotImplementedError("no")

    verdicts = judge(
        TINY[1], TINY[1].make_inputs(), [Contender(OURS, unable), Contender(FLASH, unable)]
    )
    entries = {
        name: run._entry(SimpleNamespace(name=name), TINY[1], verdict, None)["status"]
        for name, verdict in verdicts.items()
    }
    assert entries == {OURS: "failed", FLASH: "skipped"}
