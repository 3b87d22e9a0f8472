"""The AMX kernels on a model of their instructions, for machines without AMX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fused_attention import _ext

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(
    "avx512_bf16" not in _ext.available_cpu_isas(),
    reason="what is not a product in these kernels needs AVX512-BF16",
)
def test_modelled_amx_kernels_within_budget():
    """Every bf16 case of test_accuracy.py in a process whose library has no other tier."""
    arguments = ("-q", "-p", "no:cacheprovider", "-k", "cpu-amx_model and bfloat16")
    result = subprocess.run(
        [sys.executable, "-m", "native.amx_model", *arguments, "backends/test_accuracy.py"],
        cwd=TESTS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
