"""The AMX tiers on any machine with AVX-512: the kernels as they are, the instructions modelled.

Every case of shapes.py in the tier's dtype, forward and gradients within their budgets.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from shapes import CASES, attention_cases

from backends.test_accuracy import LONG, compute
from fused_attention import _ext
from native.amx_model import operators

pytestmark = pytest.mark.skipif(
    "avx512" not in _ext.available_cpu_isas(), reason="the kernels need AVX-512 around the tiles"
)
TIERS = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}


@pytest.fixture(params=TIERS, ids=str)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The dtype whose tier serves backend="cpu" during the test."""
    for name in ("cpu_forward", "cpu_backward"):
        monkeypatch.setattr(torch.ops.fused_attention, name, getattr(operators(), name))
    monkeypatch.setattr(_ext, "cpu_isa", lambda: TIERS[request.param])
    return request.param


@pytest.mark.parametrize("case", (*CASES, *LONG), ids=str)
def test_within_budget(case, dtype, poisoned_allocations):
    inputs, out, lse, upstream, grads = compute(case.with_dtype(dtype), "cpu")
    inputs.assert_forward(out, lse)
    inputs.assert_gradients(grads, *upstream)
