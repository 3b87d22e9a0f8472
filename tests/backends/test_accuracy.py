"""Every fused backend on every case of shapes.py: forward and gradients within their budgets.

Allocations are poisoned (see conftest): an element that no kernel writes is NaN and fails.
"""

from __future__ import annotations

import pytest
import torch
from attention_case import AttentionCase
from hypothesis import HealthCheck, given, settings
from shapes import CASES, DTYPES, attention_cases

from fused_attention import _ext, attention, attention_varlen

BF16_TIERS = ("avx512_bf16", "amx_bf16")  # of other dtypes they run avx512's kernels


def compute(case: AttentionCase, backend: str, seed: int = 0):
    """The case's inputs, out, lse, upstream gradients and input gradients by one backend."""
    inputs = case.make(seed)
    leaves = inputs.require_gradients()
    function = attention_varlen if case.packed else attention
    operands = (inputs.query, inputs.key, inputs.value)
    out, lse = function(*operands, return_lse=True, backend=backend, **inputs.options)
    grad_out, grad_lse = inputs.random_output_gradients()
    grads = torch.autograd.grad((out, lse), list(leaves.values()), (grad_out, grad_lse))
    by_name = dict(zip(leaves, grads, strict=True))
    ordered = [by_name.get(name) for name in ("query", "key", "value", "bias", "sinks")]
    return inputs, out.detach(), lse.detach(), (grad_out, grad_lse), ordered


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(case, dtype, fused_backend, poisoned_allocations):
    if fused_backend == "cpu" and _ext.cpu_isa() in BF16_TIERS and dtype != torch.bfloat16:
        pytest.skip("the same kernels as avx512")
    inputs, out, lse, upstream, grads = compute(case.with_dtype(dtype), fused_backend)
    inputs.assert_forward(out, lse)
    inputs.assert_gradients(grads, *upstream)


# The same examples every time: on one lucky element in some thousand problems the baseline's error
# is so small that an equally good kernel exceeds its multiple.
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=attention_cases())
def test_random_problems_within_budget(case, fused_backend, poisoned_allocations):
    inputs, out, lse, upstream, grads = compute(case, fused_backend)
    inputs.assert_forward(out, lse)
    inputs.assert_gradients(grads, *upstream)


LONG = (
    AttentionCase("long", batch=1, heads_q=1, len_q=700, len_k=1500, head_dim=64),
    # Each gradient of a key sums over 12,000 queries: rounding must not grow with their number.
    AttentionCase("long_sums", batch=1, heads_q=8, heads_kv=1, len_q=1500, len_k=70, head_dim=64),
    AttentionCase("long_wide", batch=1, heads_q=2, heads_kv=1, len_q=300, len_k=900, head_dim=160),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_many_tiles_within_budget(case, dtype, fused_backend, poisoned_allocations):
    inputs, out, lse, upstream, grads = compute(case.with_dtype(dtype), fused_backend)
    inputs.assert_forward(out, lse)
    inputs.assert_gradients(grads, *upstream)
