"""The formulas of additive attention: exact in fp64, and what they do with nothing."""

from __future__ import annotations

import pytest
import torch
from additive_case import CASES, DTYPES, NAMES, AdditiveCase

from fused_attention import Band, additive_attention


@pytest.mark.parametrize("case", CASES, ids=str)
def test_formulas_are_what_autograd_says(case: AdditiveCase) -> None:
    inputs = case.with_dtype(torch.float64).make()
    results = inputs.run("reference")
    for name, result, exact in zip(
        ("out", "lse", *NAMES), results, inputs.plain(torch.float64), strict=True
    ):
        error = torch.where(result == exact, 0.0, (result - exact).abs())
        scale = torch.where(exact.isfinite(), exact, 0.0).abs().clamp(min=1.0)
        assert (error < 1e-12 * scale).all(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_within_its_budget(dtype: torch.dtype) -> None:
    case = AdditiveCase("mixed", band=Band.window(9, 4), key_lengths=(20, 0), dtype=dtype)
    inputs = case.make()
    inputs.assert_results(*inputs.run("reference"))


def test_normed_is_the_plain_one_with_that_vector() -> None:
    inputs = AdditiveCase("normed", v_heads=True, dtype=torch.float64).make()
    operands, g = (inputs.query, inputs.key, inputs.value), torch.tensor(1.7)
    v = 1.7 * inputs.v / inputs.v.norm(dim=-1, keepdim=True)
    expected = additive_attention(*operands, v)
    for factor in (1.7, g.double()):
        torch.testing.assert_close(additive_attention(*operands, inputs.v, g=factor), expected)


def test_bias_is_added_before_the_tanh() -> None:
    inputs = AdditiveCase("bias", dtype=torch.float64).make()
    bias = torch.randn(16)  # of another dtype, as a module's parameter may be
    actual = additive_attention(inputs.query, inputs.key, inputs.value, inputs.v, bias=bias)
    moved = inputs.query + bias.double()
    expected = additive_attention(moved, inputs.key, inputs.value, inputs.v)
    torch.testing.assert_close(actual, expected)
