"""The benchmark of time against length, on short lengths and made-up times."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from fused_attention.benchmarks import growth
from fused_attention.benchmarks.timing import Timing


def grown(power: float) -> Callable[..., dict[str, Timing]]:
    """Each length's time is its power."""

    def timed(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing((int(name) ** power,), 1) for name in calls}

    return timed


@pytest.mark.parametrize(("power", "code"), [(1.0, 0), (1.04, 0), (1.06, 1), (0.9, 1), (2.0, 1)])
def test_exit_code_tells_whether_time_is_linear(power, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "time_interleaved", grown(power))
    path, threads = tmp_path / "new" / "growth.json", str(torch.get_num_threads())
    arguments = ["--lengths", "64,128,1024", "--json", str(path), "--threads", threads]
    assert growth.main(arguments) == code
    rows = json.loads(path.read_text())["rows"]
    assert [(row["dtype"], row["direction"]) for row in rows] == [
        (dtype, direction) for dtype in ("fp32", "bf16") for direction in ("forward", "backward")
    ]
    assert all(row["slope"] == pytest.approx(power) for row in rows)
    assert all(list(row["median_s"]) == ["64", "128", "1024"] for row in rows)
    assert ("not linear: bf16 backward" in capsys.readouterr().out) == bool(code)


def test_both_directions_are_timed(tmp_path: Path) -> None:
    row = growth.measure("fp32", "backward", [600, 1200], 0.01)
    assert row["median_s"]["1200"] > 0 and row["slope"] == row["slope"]


@pytest.mark.parametrize("lengths", ["64", "64,64", "0,64", "64,x", ""])
def test_wrong_lengths(lengths, capsys):
    with pytest.raises(SystemExit):
        growth.main(["--lengths", lengths])
    assert "argument --lengths: must be two or more different lengths" in capsys.readouterr().err
