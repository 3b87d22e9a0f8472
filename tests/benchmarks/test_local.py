"""Local attention against torch's formula: who is right, what is reported, and what fails."""

from __future__ import annotations

import copy
import functools
import json

import pytest
import torch

from fused_attention.benchmarks import local
from fused_attention.benchmarks.contenders import OURS
from fused_attention.benchmarks.local import DENSE, FLASHBIAS, Setting

SMALL = Setting(length=96, heads=2, head_dim=8, width=5, sigma=2.0)


@pytest.mark.parametrize("mode", local.MODES)
def test_every_contender_computes_the_same(mode):
    tensors = [x.double() for x in SMALL.inputs()]
    expected = local.gathered(tensors, SMALL.window(mode), mode)
    for name in local.PEERS[mode]:
        out = local.CONTENDERS[name](tensors, SMALL.window(mode), mode)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_a_report(tmp_path, monkeypatch, capsys):
    out = tmp_path / "report.json"
    monkeypatch.setattr(local, "growth", functools.partial(local.growth, factors=(1,)))
    local.main(["--length", "96", "--head-dim", "8", "--seconds", "0", "--json", str(out)])
    report = json.loads(out.read_text())
    peaks = report["memory_bytes"]
    assert list(peaks) == ["96"] and all(peak > 0 for peak in peaks.values())
    for mode in local.MODES:
        found = report["errors"][mode]
        assert local.right(found) and found[OURS]["gradients"] < 1e-5
        for step in report["times"][mode].values():
            assert set(step["seconds"]) == set(local.RACERS[mode])
    printed = capsys.readouterr().out
    assert "L=96" in printed and f"x {DENSE}" in printed and f"x {FLASHBIAS}" in printed


def test_what_speaks_against_us():
    step = {"seconds": {}, "speedups": {DENSE: 9.0}}
    good = {
        "memory_bytes": {"8": 100, "16": 200, "32": 390},
        "times": {"luong": {"forward": step}, "log_bias": {}},
    }
    assert local.fails(good) == []
    slow, wrong, hungry = (copy.deepcopy(good) for _ in range(3))
    slow["times"]["luong"]["forward"]["speedups"][DENSE] = 7.9
    assert local.fails(slow) == ["luong, forward: 7.9x is below 8x"]
    del wrong["times"]["log_bias"]
    assert local.fails(wrong) == ["log_bias: wrong results"]
    hungry["memory_bytes"]["32"] = 800
    assert local.fails(hungry) == ["memory grows 4.0x where lengths double"]


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    monkeypatch.setitem(local.CONTENDERS, OURS, lambda *a: local.ours(*a) * 1.001)
    assert not local.right(local.errors(SMALL, "luong"))
