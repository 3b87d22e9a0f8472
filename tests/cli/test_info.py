"""fused-attention info: the machine and the support matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fused_attention
from fused_attention import _ext
from fused_attention.benchmarks import machine
from fused_attention.cli import info, matrix


def test_json_tells_what_runs_here(command: Any) -> None:
    told = json.loads(command("info", "--json").out)
    assert told["fused_attention"] == fused_attention.__version__
    assert told["torch"] == torch.__version__
    assert told["cpu"]["threads"] == torch.get_num_threads()
    assert told["cpu"]["isa"] in told["cpu"]["available_isas"]
    assert {b["name"]: b["available"] for b in told["backends"]} == {
        b.name: b.available for b in fused_attention.backends()
    }


def test_table_and_json_file(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    outcome = command("info", "--json", path)
    assert outcome.code == 0
    assert f"{_ext.cpu_isa()} in use" in outcome.out
    assert "backend cpu" in outcome.out
    assert json.loads(path.read_text())["python"] in outcome.out


def test_cuda_is_left_alone() -> None:
    info.gather()
    assert not torch.cuda.is_initialized()


def test_unavailable_backend_has_its_reason(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ext, "cpu_unavailable", lambda: "the library is on holiday")
    outcome = command("info")
    assert "not available: the library is on holiday" in outcome.out
    assert "none in use" in outcome.out


def test_gpu_names_without_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert info._gpu_names() == ["GPU", "GPU"]


def test_torch_with_cuda_but_without_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert info.cuda_info()["reason"] == "no usable GPU or driver was found"


def test_matrix_has_every_feature_and_backend(command: Any) -> None:
    outcome = command("info", "--matrix")
    support = matrix.support()
    assert all(entry.feature in outcome.out for entry in support)
    assert matrix.LEGEND in outcome.out
    entries = json.loads(command("info", "--matrix", "--json").out)
    assert entries == support.as_dicts()


def test_matrix_cells_hold_the_supported_dtypes() -> None:
    entries = [e for e in matrix.support() if e.feature in ("forward", "sinks")]
    hidden = [
        e._replace(supported=False)
        if e.backend == "cpu" and e.feature == "sinks" and e.dtype != "fp32"
        else e
        for e in entries
    ]
    headers, rows = matrix.matrix_table(type(matrix.support())(hidden))
    assert headers == ["Feature", "cpu", "reference on cpu"]
    assert rows == [["forward", "all", "all"], ["sinks", "fp32", "all"]]


def test_machine_info_is_plain() -> None:
    values = machine.machine_info()
    assert json.loads(json.dumps(values)) == values
    assert values["cpu"]


def test_cpu_model_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert machine.cpu_model()


def test_revision_outside_a_checkout_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine.git_revision() is None
