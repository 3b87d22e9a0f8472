"""What this machine can do at most, measured beside each case: matrix products, reading memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .cases import DTYPES, Case
from .timing import Timing

MATMUL, READ = "limit: matmul", "limit: read"
MATRIX_SIZE = 1024
BLOCK_FLOATS = 32 * 2**20  # 128 MiB: more than the caches hold


@dataclass(frozen=True)
class Limits:
    """Measured with the thread count, the dtype and the machine's load of one case."""

    matmul_flops: float  # FLOP/s of torch.mm
    read_bytes: float  # bytes/s of torch.sum

    @classmethod
    def from_timings(cls, timings: Mapping[str, Timing]) -> Limits:
        return cls(
            matmul_flops=2.0 * MATRIX_SIZE**3 / timings[MATMUL].median_s,
            read_bytes=4.0 * BLOCK_FLOATS / timings[READ].median_s,
        )

    def least_seconds(self, flops: float, io_bytes: float) -> float:
        """Time of a call if only these limits counted."""
        return max(flops / self.matmul_flops, io_bytes / self.read_bytes)


def limit_calls(case: Case) -> dict[str, Callable[[], object]]:
    """What to time beside the contenders of a case, in the same rounds."""
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE).to(DTYPES[case.dtype])
    block = torch.ones(BLOCK_FLOATS)
    return {MATMUL: functools.partial(torch.mm, matrix, matrix), READ: block.sum}
