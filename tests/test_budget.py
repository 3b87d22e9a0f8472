"""The error budget must pass what is as good as torch and fail what is not."""

from __future__ import annotations

import pytest
import torch
from budget import assert_within_budget, rounding_atol

LOW = (torch.bfloat16, torch.float16)


def exact_values(count: int = 500) -> torch.Tensor:
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [*LOW, torch.float32])
def test_rounding_to_the_dtype_passes(dtype: torch.dtype) -> None:
    exact = exact_values()
    assert_within_budget(exact.to(dtype), exact, exact.to(dtype))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_the_limit_is_factor_times_the_baseline(dtype: torch.dtype, factor: float) -> None:
    exact = torch.zeros(500, dtype=torch.float64)  # whose rounding atol is the tiny floor
    baseline, actual = torch.linspace(-0.125, 0.125, 500, dtype=dtype), exact.to(dtype)
    actual[7] = factor * 0.125
    assert_within_budget(actual, exact, baseline, factor=factor)
    actual[7] *= 1.02
    with pytest.raises(AssertionError, match="exceeds its budget"):
        assert_within_budget(actual, exact, baseline, factor=factor)


@pytest.mark.parametrize("dtype", LOW)
def test_rounding_grants_no_more_than_two_ulps(dtype: torch.dtype) -> None:
    atol, ulp = rounding_atol(exact_values().clamp(-2, 2), dtype), 2 * torch.finfo(dtype).eps
    assert 0.25 * ulp < atol < 2 * ulp


def test_message_tells_the_numbers_and_the_worst_place() -> None:
    exact = torch.zeros(2, 3, 4, dtype=torch.float64)
    actual = exact.float()
    actual[1, 2, 0], actual[0, 0, 1] = 0.5, -0.25
    with pytest.raises(AssertionError) as failure:
        assert_within_budget(actual, exact, exact.float(), name="gradient of key")
    message = str(failure.value)
    assert message.startswith("gradient of key: error 5.000e-01 exceeds its budget")
    assert "worst at (1, 2, 0): actual 0.5, exact 0, baseline 0" in message
    assert "2 of 24 elements" in message


@pytest.mark.parametrize("anomaly", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("in_actual", [True, False])
def test_anomalies_must_coincide(anomaly: float, in_actual: bool) -> None:
    exact, actual = exact_values(), exact_values().float()
    (actual if in_actual else exact)[3] = anomaly
    with pytest.raises(AssertionError, match=r"at 1 of 500 positions differs, first at \(3,\)"):
        assert_within_budget(actual, exact, exact.float())


def test_signs_of_infinities_must_agree() -> None:
    exact, actual = exact_values(), exact_values().float()
    exact[3], actual[3] = torch.inf, -torch.inf
    with pytest.raises(AssertionError, match="inf at 1 of 500 positions differs"):
        assert_within_budget(actual, exact, exact.float())


def test_anomalies_that_coincide_do_not_hide_other_errors() -> None:
    exact = exact_values()
    exact[3], exact[4] = -torch.inf, torch.nan
    actual = exact.float()
    assert_within_budget(actual, exact, exact.float())
    actual[5] += 0.01
    with pytest.raises(AssertionError, match=r"worst at \(5,\)"):
        assert_within_budget(actual, exact, exact.float())


def test_an_overflowing_baseline_gives_no_licence() -> None:
    exact = exact_values() * 1e6
    with pytest.raises(AssertionError, match="baseline itself is not finite"):
        assert_within_budget(exact.float(), exact, exact.half())


def test_fp64_is_held_to_fp64_precision() -> None:
    exact = exact_values()
    baseline = exact.float()
    assert_within_budget(exact * (1 + 2e-16), exact, baseline)
    with pytest.raises(AssertionError, match="exceeds its budget"):
        assert_within_budget(exact * (1 + 1e-14), exact, baseline)


def test_fp32_floor_is_a_few_ulps() -> None:
    """With a baseline that is right by luck."""
    exact = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    ulp = torch.finfo(torch.float32).eps
    assert_within_budget((exact + 3 * ulp).float(), exact, exact.float())
    with pytest.raises(AssertionError, match="exceeds its budget"):
        assert_within_budget((exact + 10 * ulp).float(), exact, exact.float())


def test_more_draws_replace_luck() -> None:
    exact = torch.tensor([1.0], dtype=torch.float64)
    actual, lucky = torch.tensor([1.001]), torch.tensor([1.0])
    other = (torch.tensor([3.0, -torch.inf], dtype=torch.float64), torch.tensor([3.0006, 0.0]))
    assert_within_budget(actual, exact, lucky, more_draws=[other])
    with pytest.raises(AssertionError, match="exceeds its budget"):
        assert_within_budget(actual + 1e-3, exact, lucky, more_draws=[other])


def test_empty_results_pass() -> None:
    empty = torch.zeros(0, 3, dtype=torch.float64)
    assert_within_budget(empty.float(), empty, empty.float())


def test_shapes_must_agree() -> None:
    exact = exact_values()
    with pytest.raises(AssertionError, match="shapes differ"):
        assert_within_budget(exact[:1].float(), exact, exact.float())
    with pytest.raises(AssertionError, match="exact64 is torch.float32"):
        assert_within_budget(exact.float(), exact.float(), exact.float())
