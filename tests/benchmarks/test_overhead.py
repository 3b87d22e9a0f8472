"""The command that times the doors: which doors, what over what, and what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fused_attention.benchmarks import doors, overhead
from fused_attention.benchmarks.doors import DIRECT, LENGTHS, Operands, Timed


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return overhead.measure(rounds=2, calls=2)


def test_every_door_is_timed_or_named_as_missing(report: dict[str, Any]) -> None:
    found = report["doors"]
    assert list(found) == list(doors.DOORS)
    for name, door in found.items():
        assert door["status"] in ("ok", "missing")
        assert door["status"] == "missing" or door["median_us"] > 0, name
    for name in (DIRECT, "attention_varlen()", "compat flash_attn_func()", "with sdpa()"):
        assert found[name]["status"] == "ok"
    assert "over" not in found[DIRECT]
    assert found["nn.MultiHeadAttention"]["over"] == "projections by hand"
    assert found["compat flash_attn_with_kvcache()"]["over"] == LENGTHS


def test_doors_compute_the_same() -> None:
    operands = Operands.make(gradients=False)
    expected = doors.direct(operands).call().transpose(1, 2)
    packed = (doors.varlen, doors.flash_attn, doors.flash_attn_varlen, doors.flash_attn_3)
    for build in packed:
        torch.testing.assert_close(build(operands).call().view(expected.shape), expected)
    for build in (doors.sdpa_scope, doors.sdpa_registered):
        timed = build(operands)
        with timed.context():
            found = timed.call()
        torch.testing.assert_close(found.transpose(1, 2), expected)
    cached, direct = (build(operands).call() for build in (doors.flash_attn_kvcache, doors.lengths))
    torch.testing.assert_close(cached.transpose(1, 2), direct)
    hand, module = (build(operands) for build in (doors.projections, doors.multi_head))
    torch.testing.assert_close(module.call()[0], hand.call())
    pytest.importorskip("transformers", minversion="5.4")
    torch.testing.assert_close(doors.transformers(operands).call()[0], expected)


def test_contexts_are_left(report: dict[str, Any]) -> None:
    assert torch.nn.attention.current_flash_attention_impl() is None
    own = torch._C._nn.scaled_dot_product_attention
    assert torch.nn.functional.scaled_dot_product_attention is own


def test_overhead_is_the_median_of_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = {DIRECT: [10.0, 50.0, 10.0], "door": [13.0, 54.0, 40.0], "slow": [99.0, 99.0, 99.0]}

    def missing(_: Operands) -> Timed:
        raise ImportError("not there")

    made = {
        DIRECT: lambda _: Timed(int, baseline=None),
        "door": lambda _: Timed(int),
        "slow": lambda _: Timed(int, baseline="door"),
        "gone": missing,
    }
    monkeypatch.setattr(overhead, "DOORS", made)
    monkeypatch.setattr(overhead, "_samples", lambda *_: samples)
    report = overhead.measure(rounds=3, calls=1)
    assert report["doors"]["door"]["overhead_us"] == 4.0
    assert report["doors"]["slow"]["overhead_us"] == 59.0
    assert report["doors"]["gone"] == {"status": "missing", "reason": "not there"}
    assert overhead.too_slow(report, 30.0) == ["slow"]
    lines = [line.split() for line in overhead.as_table(report).splitlines()]
    assert lines[2] == [DIRECT, "10.0"]
    assert lines[3] == ["door", "40.0", "+4.0", DIRECT]
    assert lines[5] == ["gone", "missing", "not", "there"]


def test_command_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    report: dict[str, Any],
) -> None:
    monkeypatch.setattr(overhead, "measure", lambda *_: report)
    path = tmp_path / "new" / "overhead.json"
    assert overhead.main(["--json", str(path), "--limit", "1e9"]) == 0
    assert json.loads(path.read_text())["doors"] == report["doors"]
    assert overhead.main(["--limit=-1e9"]) == 1
    assert "over -1e+09 us: attention_varlen()" in capsys.readouterr().out


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in list(sys.modules):
        if name.startswith("fused_attention.integrations.") and "transformers" in name:
            monkeypatch.delitem(sys.modules, name)
    found = overhead.measure(rounds=1, calls=1)["doors"]["transformers"]
    assert found["status"] == "missing" and "needs transformers >= 5.4" in found["reason"]
