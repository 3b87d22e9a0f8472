"""What the machine can do at most: measured by instructions, bounded by what kernels reach."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fused_attention import _ext
from fused_attention.benchmarks import limits
from fused_attention.benchmarks.cases import DTYPES, Case, square
from fused_attention.benchmarks.limits import MULTIPLY, READ, Limits, Probes
from fused_attention.benchmarks.timing import Timing, time_interleaved

CASE = square(1, 1, 8, 4)
DECODE = Case(1, 1, 1, 1, 64, 4)
native = pytest.mark.skipif(_ext.cpu_unavailable() is not None, reason="needs the CPU library")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MATRIX_SIZE", 32)
    monkeypatch.setattr(limits, "BLOCK_FLOATS", 2**18)


def test_the_nearer_limit_counts() -> None:
    found = Limits(peak_flops=1e9, read_bytes=1e6)
    assert found.least_seconds(2e9, 1e6) == 2.0 and found.nearest(2e9, 1e6) == "multiply"
    assert found.least_seconds(1e9, 3e6) == 3.0 and found.nearest(1e9, 3e6) == "read"


def test_rates_follow_from_the_best_multiplication_and_the_median_of_reading() -> None:
    probes = Probes({}, flops=6.0, bytes=8.0)
    timings = {MULTIPLY: Timing((2.0, 3.0, 9.0), 1), READ: Timing((1.0, 4.0, 9.0), 1)}
    assert probes.limits(timings) == Limits(peak_flops=3.0, read_bytes=2.0)


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_product_is_faster_than_the_peak(dtype: str) -> None:
    """torch's own product of the same dtype, at the same time, on one thread as here."""
    case = dataclasses.replace(CASE, dtype=dtype)
    probes = Probes.of(case)
    matrix = torch.randn(256, 256).to(DTYPES[dtype])
    timings = time_interleaved({**probes.calls, "mm": lambda: torch.mm(matrix, matrix)}, 0.2)
    by_torch = 2 * 256**3 / timings["mm"].min_s
    assert probes.flops / timings[MULTIPLY].min_s > 0.7 * by_torch


@native
def test_the_peak_counts_every_thread() -> None:
    like = torch.empty(0)
    before = torch.get_num_threads()
    try:
        done = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            done.append(torch.ops.fused_attention.cpu_peak(like, 10, _ext.cpu_isa()))
    finally:
        torch.set_num_threads(before)
    assert done[1] == 2 * done[0] > 0


@native
def test_the_peak_of_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(RuntimeError, match="instruction set 'avx1024' is not available"):
        torch.ops.fused_attention.cpu_peak(torch.empty(0), 1, "avx1024")


@native
@pytest.mark.parametrize("lines", [1, 4095, 4096, 4097, 20000])
def test_reading_touches_every_line(lines: int) -> None:
    """The bits of every word are found, wherever it stands."""
    block = torch.zeros(lines * 8, dtype=torch.int64)
    for place in (0, block.numel() // 2, block.numel() - 1):
        block[place] = 1 << (place % 60)
    found = torch.ops.fused_attention.cpu_read(block)
    assert found == int(block[0]) | int(block[block.numel() // 2]) | int(block[-1])


def test_without_the_library_torch_s_product_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ext, "cpu_unavailable", lambda: "has not been built")
    probes = Probes.of(DECODE)
    assert probes.flops == 2 * 32**3 and probes.bytes == 4 * 2**18
    assert all(torch.is_tensor(call()) for call in probes.calls.values())
