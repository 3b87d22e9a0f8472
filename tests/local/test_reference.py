"""The formulas of local attention: exact in fp64, Luong's conventions, and local-m as a band."""

from __future__ import annotations

import math

import pytest
import torch
from local_case import NAMES, LocalCase
from local_cases import CASES, DTYPES

from fused_attention import Band, attention, local_attention

MODES = ("luong", "log_bias")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_formulas_are_what_autograd_says(case: LocalCase) -> None:
    inputs = case.with_dtype(torch.float64).make()
    results = inputs.run("reference")
    names = ("out", "lse", *NAMES)[: len(results)]
    for name, result, exact in zip(names, results, inputs.plain(torch.float64), strict=True):
        error = torch.where(result == exact, 0.0, (result - exact).abs())
        scale = torch.where(exact.isfinite(), exact, 0.0).abs().clamp(min=1.0)
        assert (error < 1e-12 * scale).all(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_every_dtype_within_its_budget(mode: str, dtype: torch.dtype) -> None:
    case = LocalCase("mixed", key_lengths=(40, 0), sigma="query", mode=mode, dtype=dtype)
    inputs = case.make()
    inputs.assert_results(*inputs.run("reference"))


def test_weights_are_those_of_the_paper() -> None:
    """Luong et al. 2015, equations 7 and 10, word by word for one query."""
    torch.manual_seed(0)
    D, S, p = 2, 9, 3.8
    query, keys = torch.randn(5, dtype=torch.float64), torch.randn(S, 5, dtype=torch.float64)
    identity = torch.eye(S, dtype=torch.float64)  # values that show the weights
    window = range(math.floor(p) - D, math.floor(p) + D + 1)
    total = sum(math.exp(query @ keys[s]) for s in window)
    weights = torch.zeros(S, dtype=torch.float64)
    for s in window:
        align = math.exp(query @ keys[s]) / total
        weights[s] = align * math.exp(-((s - p) ** 2) / (2 * (D / 2) ** 2))
    position = torch.tensor([[[p]]], dtype=torch.float64)
    operands = (query[None, None, None], keys[None, None], identity[None, None], position)
    out = local_attention(*operands, width=D, scale=1.0)
    torch.testing.assert_close(out[0, 0, 0], weights)
    assert out.sum() < 0.9


def test_log_bias_weights_sum_to_one() -> None:
    inputs = LocalCase("sums", dtype=torch.float64, mode="log_bias").make()
    value = torch.eye(50, dtype=torch.float64).expand(2, 2, 50, 50)
    out, lse = local_attention(
        inputs.query, inputs.key, value, inputs.position, return_lse=True, **inputs.options
    )
    sees = lse > -torch.inf
    torch.testing.assert_close(out.sum(-1), sees.double())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_local_m_is_attention_in_a_band(backend: str, mode: str) -> None:
    """p_t = t without a Gaussian: a sliding window of attention(), with all its gradients."""
    inputs = LocalCase("local_m", len_q=40, len_k=60, key_lengths=(60, 41)).make()
    leaves = [x.requires_grad_() for x in (inputs.query, inputs.key, inputs.value)]
    position = torch.arange(40).expand(2, 1, 40)
    lengths = inputs.options["key_lengths"]
    options = {"key_lengths": lengths, "mode": mode, "return_lse": True, "backend": backend}
    actual = local_attention(*leaves, position, width=7, sigma=math.inf, **options)
    band = Band.window(7, 7, offset=0)
    expected = attention(*leaves, band=band, kv_lengths=lengths, return_lse=True)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(x, leaves, inputs.upstream) for x in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_the_default_of_sigma_is_half_of_the_width() -> None:
    inputs = LocalCase("sigma").make()
    operands = (inputs.query, inputs.key, inputs.value, inputs.position)
    default = local_attention(*operands, width=6)
    torch.testing.assert_close(default, local_attention(*operands, width=6, sigma=3))
    assert not torch.equal(default, local_attention(*operands, width=6, sigma=3.1))


def test_the_window_does_not_move_inside_of_a_key() -> None:
    """Only the Gaussian sees the fraction of a position: floor has no gradient."""
    inputs = LocalCase("floor", sigma="inf").make()
    operands = (inputs.query, inputs.key, inputs.value)
    results = [
        local_attention(*operands, inputs.position.floor() + part, width=6, sigma=math.inf)
        for part in (0.0, 0.5, 0.99)
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
