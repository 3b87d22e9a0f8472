"""What this machine can do at most, measured beside each case: multiplications, reading memory.

On a CPU both are loops of the compiled library: the multiplications that the kernels of the dtype
use (FMA, products of bf16 pairs, tiles), in registers, on every thread; and the reading of a block
by all threads together. On a GPU, and where that library is missing, they are torch's matrix
product and its sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fused_attention import _ext

from .cases import DTYPES, Case
from .timing import Timing

MULTIPLY, READ = "limit: multiply", "limit: read"
PEAK_ROUNDS = 200_000  # of csrc/cpu/peak.h: about a millisecond
MATRIX_SIZE, GPU_MATRIX_SIZE = 1024, 8192
BLOCK_FLOATS = 32 * 2**20  # 128 MiB: more than the caches hold
GPU_BLOCK_FLOATS = 256 * 2**20


@dataclass(frozen=True)
class Limits:
    """Measured with the thread count, the dtype and the machine's load of one case."""

    peak_flops: float  # FLOP/s
    read_bytes: float  # bytes/s

    def least_seconds(self, flops: float, io_bytes: float) -> float:
        """Time of a call if only these limits counted."""
        return max(flops / self.peak_flops, io_bytes / self.read_bytes)

    def nearest(self, flops: float, io_bytes: float) -> str:
        """Which of them a call meets first: "multiply" or "read"."""
        reading = io_bytes / self.read_bytes > flops / self.peak_flops
        return "read" if reading else "multiply"


@dataclass(frozen=True)
class Probes:
    """What to time beside the contenders of a case, in the same rounds, and how much it does."""

    calls: Mapping[str, Callable[[], object]]
    flops: float
    bytes: float

    @classmethod
    def of(cls, case: Case) -> Probes:
        on_gpu = case.device == "cuda"
        block = torch.ones(GPU_BLOCK_FLOATS if on_gpu else BLOCK_FLOATS, device=case.device)
        if on_gpu or _ext.cpu_unavailable() is not None:
            size = GPU_MATRIX_SIZE if on_gpu else MATRIX_SIZE
            matrix = torch.randn(size, size, device=case.device).to(DTYPES[case.dtype])
            multiply: Callable[[], object] = functools.partial(torch.mm, matrix, matrix)
            flops, read = 2.0 * size**3, block.sum
        else:
            ops, like = torch.ops.fused_attention, torch.empty(0, dtype=DTYPES[case.dtype])
            multiply = functools.partial(ops.cpu_peak, like, PEAK_ROUNDS, _ext.cpu_isa())
            flops, read = multiply(), functools.partial(ops.cpu_read, block)
        return cls({MULTIPLY: multiply, READ: read}, flops, 4.0 * block.numel())

    def limits(self, timings: Mapping[str, Timing]) -> Limits:
        """The best of all rounds for multiplications, which nobody shares; the median for memory.

        Who else is on the machine slows down the short loop of multiplications more than a call
        with its loads and stores, which would then seem faster than the machine.
        """
        return Limits(
            peak_flops=self.flops / timings[MULTIPLY].min_s,
            read_bytes=self.bytes / timings[READ].median_s,
        )
