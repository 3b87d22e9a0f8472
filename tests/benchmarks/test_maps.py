"""The benchmark of attention_maps, on short lengths."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fused_attention import attention_maps
from fused_attention.benchmarks import maps
from fused_attention.benchmarks.memory import MIB


def peaks_of(found: int | None) -> Callable[..., Any]:
    return lambda jobs, threads: [dict.fromkeys(maps.CONTENDERS, found) for _ in jobs]


def report(path: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    threads = str(torch.get_num_threads())
    fixed = ["--seconds", "0.01", "--threads", threads, "--json", str(path)]
    code = maps.main([*fixed, *arguments])
    return code, json.loads(path.read_text())["rows"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(maps, "measure_peaks", peaks_of(3 * MIB))
    code, rows = report(tmp_path / "out.json", "--lengths", "96,200", "--dtypes", "bf16,fp32")
    assert code == 0 and len(rows) == 4 * len(maps.FACTS)
    assert [row["fact"] for row in rows[: len(maps.FACTS)]] == list(maps.FACTS)
    for row in rows:
        ours, torch_ = (row["contenders"][name] for name in maps.CONTENDERS)
        assert ours["median_s"] > 0 and torch_["median_s"] > 0 and not row["wrong"]
        assert row["difference"] <= maps.TOLERANCE[row["dtype"]]
    shown = capsys.readouterr().out
    assert "WRONG" not in shown and shown.count("3.0        3.0") == len(rows)


def test_wrong_results_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        found = attention_maps(*arguments, **options)
        if found.column_mass is None:
            return found
        return found._replace(column_mass=found.column_mass * 1.01)

    monkeypatch.setattr(maps, "attention_maps", wrong)
    monkeypatch.setattr(maps, "measure_peaks", peaks_of(None))
    code, rows = report(tmp_path / "out.json", "--lengths", "300", "--dtypes", "fp32")
    assert code == 1
    assert [row["fact"] for row in rows if row["wrong"]] == ["column mass", "all of it"]
    assert not any("contenders" in row for row in rows if row["wrong"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    """Both contenders are measured in the same way, so a peak that is missed would show."""
    length = 3072
    (peaks,) = maps.measure_peaks([maps.Job(length, "fp32", "all of it")], threads=1)
    ours, naive = (peaks[name] for name in maps.CONTENDERS)
    assert ours is not None and naive is not None
    weights = 4 * length**2
    results = 4 * (maps.ROWS * length + 2 * length) + (4 + 8) * maps.TOP_K * length
    assert naive > weights
    assert ours < 1.5 * results + MIB
