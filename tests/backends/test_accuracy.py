"""Every fused backend on every case of shapes.py: forward and gradients within their budgets.

Allocations are poisoned (see conftest): an element that no kernel writes is NaN and fails.
"""

from __future__ import annotations

import pytest
import torch
from attention_case import AttentionCase
from hypothesis import HealthCheck, assume, given, settings
from places import Place, matrix
from shapes import CASES, DTYPES, attention_cases

from fused_attention import Band, attention, attention_varlen


def assert_within_budget(case: AttentionCase, place: Place, seed: int = 0) -> None:
    """out, lse and the gradients of all inputs by one backend, against the reference."""
    inputs = case.make(seed, place.device)
    leaves = inputs.require_gradients()
    function = attention_varlen if case.packed else attention
    operands = (inputs.query, inputs.key, inputs.value)
    out, lse = function(*operands, return_lse=True, backend=place.backend, **inputs.options)
    upstream = inputs.random_output_gradients()
    grads = torch.autograd.grad((out, lse), list(leaves.values()), upstream)
    by_name = dict(zip(leaves, grads, strict=True))
    ordered = [by_name.get(name) for name in ("query", "key", "value", "bias", "sinks")]
    inputs.assert_forward(out.detach(), lse.detach())
    inputs.assert_gradients(ordered, *upstream)


@pytest.mark.parametrize(("place", "case"), matrix(CASES, DTYPES), indirect=["place"])
def test_within_budget(place, case, poisoned_allocations):
    assert_within_budget(case, place)


# The same examples every time: on one lucky element in some thousand problems the baseline's error
# is so small that an equally good kernel exceeds its multiple.
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=attention_cases())
def test_random_problems_within_budget(case, place, poisoned_allocations):
    if place.backend != "cpu":
        case = place.fitting(case)
        assume(not place.why_not(case))
    assert_within_budget(case, place)


# Without a backward pass a backend may take another way, as the CPU's does for a few queries.
FEW_QUERIES = (
    *(case for case in CASES if not case.packed and case.len_q < 16),
    AttentionCase("few_long", heads_q=6, heads_kv=2, len_q=3, len_k=1300, band=Band.window(900, 1)),
    AttentionCase("few_lengths", len_q=5, len_k=600, kv_lengths=(600, 0), softcap=3.0),
    AttentionCase("few_offsets", heads_q=4, len_q=2, len_k=90, band=Band.causal(offset=40)),
    AttentionCase("few_of_many_heads", 1, 96, 1, len_q=15, len_k=40, alibi="h", sinks=True),
)


@pytest.mark.parametrize(("place", "case"), matrix(FEW_QUERIES, DTYPES), indirect=["place"])
def test_forward_alone_within_budget(place, case, poisoned_allocations):
    inputs = case.make(0, place.device)
    operands = (inputs.query, inputs.key, inputs.value)
    out, lse = attention(*operands, return_lse=True, backend=place.backend, **inputs.options)
    inputs.assert_forward(out, lse)


LONG = (
    AttentionCase("long", batch=1, heads_q=1, len_q=700, len_k=1500, head_dim=64),
    # Each gradient of a key sums over 12,000 queries: rounding must not grow with their number.
    AttentionCase("long_sums", batch=1, heads_q=8, heads_kv=1, len_q=1500, len_k=70, head_dim=64),
    AttentionCase("long_wide", batch=1, heads_q=2, heads_kv=1, len_q=300, len_k=900, head_dim=160),
)


@pytest.mark.parametrize(
    ("place", "case"), matrix(LONG, (torch.float32, torch.bfloat16)), indirect=["place"]
)
def test_many_tiles_within_budget(place, case, poisoned_allocations):
    assert_within_budget(case, place)
