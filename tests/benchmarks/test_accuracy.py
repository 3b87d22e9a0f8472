"""The accuracy rule on numbers whose error is known."""

from __future__ import annotations

import math

import pytest
import torch

from fused_attention.benchmarks.accuracy import error_ratio, max_error, rounding_error

EXACT = torch.linspace(-2, 2, 101, dtype=torch.float64)


def test_exact_result_has_no_error() -> None:
    assert error_ratio(EXACT.float(), EXACT.float(), EXACT) < 0.1


@pytest.mark.parametrize("gradient, factor", [(False, 2.0), (True, 3.0)])
def test_allowed_is_a_multiple_of_the_naive_error(gradient: bool, factor: float) -> None:
    naive = (EXACT + 0.01).float()
    for share in (0.5, 0.99, 1.01, 2.0):
        actual = (EXACT - 0.01 * factor * share).float()
        ratio = error_ratio(actual, naive, EXACT, gradient=gradient)
        assert ratio == pytest.approx(share, rel=1e-3)


def test_exact_naive_result_still_allows_rounding() -> None:
    assert error_ratio(EXACT.bfloat16(), EXACT, EXACT) <= 1.0
    assert error_ratio(EXACT.bfloat16() * 1.1, EXACT, EXACT) > 1.0


def test_overflowing_naive_result_excuses_nothing() -> None:
    naive = EXACT.float()
    naive[0] = math.inf
    assert error_ratio(EXACT.float(), naive, EXACT) <= 1.0
    assert error_ratio(EXACT.float() + 0.1, naive, EXACT) > 1.0


def test_fp64_is_measured_by_the_scaled_fp32_error() -> None:
    naive = EXACT.float() + 1e-6
    scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    assert error_ratio(EXACT + 1e-6 * scale, naive, EXACT) <= 1.0
    assert error_ratio(EXACT + 1e-9, naive, EXACT) > 1.0


def test_anomalies_must_agree() -> None:
    exact = torch.tensor([1.0, -math.inf, math.nan], dtype=torch.float64)
    assert max_error(exact.float(), exact) == 0.0
    for wrong in ([math.nan, -math.inf, math.nan], [1.0, 0.0, math.nan], [1.0, -math.inf, 0.0]):
        assert max_error(torch.tensor(wrong), exact) == math.inf
    assert max_error(torch.tensor([1.0, math.inf, math.nan]), exact) == math.inf


def test_wrong_shape_is_infinitely_wrong_and_nothing_is_right() -> None:
    assert max_error(EXACT[:-1], EXACT) == math.inf
    assert max_error(EXACT[:0], EXACT[:0]) == 0.0
    assert rounding_error(EXACT[:0], torch.float32) > 0.0
