"""The race of additive attention and its formula: checked, timed, weighed, stored."""

from __future__ import annotations

import json

import pytest
import torch

from fused_attention.benchmarks import additive
from fused_attention.benchmarks.additive import OURS, PEER, Size

TINY = Size(1, 8, 8, 16)


def test_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(additive, "TIMED", (TINY, TINY._replace(dtype="bf16")))
    monkeypatch.setattr(additive, "LARGEST", Size(1, 300, 300, 64))
    path = tmp_path / "new" / "report.json"
    status = additive.main(["--seconds", "0.01", "--json", str(path)])
    report = json.loads(path.read_text())
    assert [row["size"]["dtype"] for row in report["times"]] == ["fp32"] * 2 + ["bf16"] * 2
    for row in report["times"]:
        assert set(row["seconds"]) == {OURS, PEER} and row["speedup"] > 0
    assert [row["tanh_bytes"] for row in report["memory"]] == [300 * 300 * 64 * 4] * 2
    assert status == int(bool(additive.misses(report)))
    assert str(TINY) in capsys.readouterr().out


def test_bars():
    row = {"size": Size(4, 9, 9, 9)._asdict(), "pass": "forward"}
    memory = [{**row, "saving": saving} for saving in (None, 99.0, 101.0)]
    times = [{**row, "speedup": x} for x in (2.9, 3.1)]
    times += [{**row, "size": Size(4, 1, 9, 9)._asdict(), "speedup": 2.0}]
    missed = additive.misses({"memory": memory, "times": times})
    assert len(missed) == 2 and "99x" in missed[0] and "2.9x" in missed[1]


def test_nothing_wrong_is_timed(monkeypatch):
    wrong = {OURS: lambda *x: additive.formula(*x) * 1.01, PEER: additive.formula}
    monkeypatch.setattr(additive, "FUNCTIONS", wrong)
    with pytest.raises(RuntimeError, match="results differ"):
        additive.time_size(TINY, 0.01)


def test_scores_deviate_by_about_one():
    query, key, _, v = additive.make_inputs(Size(1, 64, 64, 512)).operands
    scores = torch.tanh(query[:, :, None] + key[:, None]) @ v
    assert 0.7 < scores.std().item() < 1.3
