"""What this machine can do at most, measured beside each case: matrix products, reading memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .cases import DTYPES, Case
from .timing import Timing

MATMUL, READ = "limit: matmul", "limit: read"
MATRIX_SIZE, GPU_MATRIX_SIZE = 1024, 8192
BLOCK_FLOATS = 32 * 2**20  # 128 MiB: more than the caches hold
GPU_BLOCK_FLOATS = 256 * 2**20


@dataclass(frozen=True)
class Limits:
    """Measured with the thread count, the dtype and the machine's load of one case."""

    matmul_flops: float  # FLOP/s of torch.mm
    read_bytes: float  # bytes/s of torch.sum

    @classmethod
    def from_timings(cls, timings: Mapping[str, Timing], device: str = "cpu") -> Limits:
        size, floats = _sizes(device)
        return cls(
            matmul_flops=2.0 * size**3 / timings[MATMUL].median_s,
            read_bytes=4.0 * floats / timings[READ].median_s,
        )

    def least_seconds(self, flops: float, io_bytes: float) -> float:
        """Time of a call if only these limits counted."""
        return max(flops / self.matmul_flops, io_bytes / self.read_bytes)


def limit_calls(case: Case) -> dict[str, Callable[[], object]]:
    """What to time beside the contenders of a case, in the same rounds."""
    size, floats = _sizes(case.device)
    matrix = torch.randn(size, size, device=case.device).to(DTYPES[case.dtype])
    block = torch.ones(floats, device=case.device)
    return {MATMUL: functools.partial(torch.mm, matrix, matrix), READ: block.sum}


def _sizes(device: str) -> tuple[int, int]:
    """Rows of the square matrices, floats that are read."""
    on_gpu = device == "cuda"
    return (GPU_MATRIX_SIZE, GPU_BLOCK_FLOATS) if on_gpu else (MATRIX_SIZE, BLOCK_FLOATS)
