"""Peak memory, measured for real on calls whose need is known."""

from __future__ import annotations

import sys

import pytest

from fused_attention.benchmarks import memory
from fused_attention.benchmarks.cases import square
from fused_attention.benchmarks.contenders import NAIVE, OURS
from fused_attention.benchmarks.memory import MIB, MemoryResult, io_bytes, measure, measure_here

LENGTH = 3072
CASE = square(1, 1, LENGTH, 64, backward=False)
SCORES = 4 * LENGTH**2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_score_matrices_show_and_linear_memory_does_not() -> None:
    too_much = square(1, 1, 1 << 29, 64, backward=False)  # inputs alone are 128 GiB each
    jobs = [(NAIVE, CASE), (OURS, CASE), ("nobody", CASE), (OURS, too_much), (OURS, CASE)]
    naive, ours, unknown, impossible, again = measure(jobs, threads=2)
    assert naive.peak_bytes is not None and ours.peak_bytes is not None
    assert SCORES < naive.peak_bytes < 4 * SCORES
    assert ours.peak_bytes < SCORES / 2
    assert unknown.peak_bytes is None and unknown.reason
    assert impossible.peak_bytes is None and impossible.reason
    assert again.peak_bytes is not None, "the server survives the jobs that fail"
    assert again.case == CASE


def test_bytes_of_inputs_and_outputs() -> None:
    rows = LENGTH * 64 * 4
    lse = LENGTH * 4
    assert io_bytes(CASE) == (3 * rows, rows + lse)
    assert io_bytes(square(1, 1, LENGTH, 64)) == (4 * rows, 4 * rows + lse)
    assert io_bytes(square(1, 1, LENGTH, 64, dtype="bf16", backward=False))[1] == rows // 2 + lse


def test_result_survives_json_and_knows_its_ratio() -> None:
    result = MemoryResult(OURS, CASE, 3 * MIB, 2 * MIB, MIB)
    assert MemoryResult.from_dict(result.as_dict()) == result
    assert result.total_bytes == 5 * MIB
    assert result.ratio == pytest.approx(5 / 3)
    missing = MemoryResult.unmeasured(OURS, CASE, "no reason")
    assert missing.total_bytes is None and missing.ratio is None


def test_missing_counter_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_peak", lambda: "not on this system")
    result = measure_here(NAIVE, square(1, 1, 16, 8, backward=False))
    assert result.peak_bytes is None
    assert result.reason == "not on this system"
