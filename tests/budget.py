"""How wrong a kernel may be: an error budget derived from the data instead of a tolerance.

The exact result is the reference computed in fp64 on the very inputs of the kernel; the baseline
is the same reference computed by torch in the kernel's own dtype. A kernel passes if

    max|actual - exact| <= factor * max|baseline - exact| + atol

so it may be `factor` times as inexact as plain torch, on these inputs, and never more. That
adapts by itself to lengths, magnitudes and dtypes, and a wrong mask or a lost term breaks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

GRADIENT_FACTOR = 3.0


def assert_within_budget(
    actual: Tensor,
    exact64: Tensor,
    baseline: Tensor,
    *,
    factor: float = 2.0,
    name: str = "out",
    more_draws: Sequence[tuple[Tensor, Tensor]] = (),
) -> None:
    """Fail unless `actual` is at most `factor` times as wrong as `baseline`, plus rounding.

    Infinities and NaN of `actual` must stand exactly where those of `exact64` do.

    Args:
        actual: what the kernel gave, in the dtype it gives.
        exact64: the fp64 reference.
        baseline: torch's result in the low dtype. For an fp64 kernel it is computed in fp32, and
            its error is scaled down to fp64's precision: in fp64 it would be the exact result.
        factor: 2 for outputs, GRADIENT_FACTOR for gradients.
        name: what the message calls the tensor.
        more_draws: (exact64, baseline) of further problems of the kind. The baseline error is then
            the largest of all, for results of a few elements, which can be right by luck.
    """
    assert exact64.dtype == torch.float64, f"{name}: exact64 is {exact64.dtype}"
    assert actual.shape == exact64.shape == baseline.shape, (
        f"{name}: shapes differ, actual {tuple(actual.shape)}, exact {tuple(exact64.shape)}, "
        f"baseline {tuple(baseline.shape)}"
    )
    dtype, actual, exact64 = actual.dtype, actual.detach().double(), exact64.detach()
    _assert_same_anomalies(actual, exact64, name)
    finite = exact64.isfinite()
    if not finite.any():
        return

    error = torch.where(finite, actual - exact64, 0.0).abs()
    draws = ((exact64, baseline), *more_draws)
    baseline_error = max(_baseline_error(*draw, name) for draw in draws)
    baseline_error *= _precision_ratio(dtype, baseline.dtype)
    atol = rounding_atol(exact64[finite], dtype)
    budget = factor * baseline_error + atol
    worst = error.max().item()
    if worst <= budget:
        return
    index = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    raise AssertionError(
        f"{name}: error {worst:.3e} exceeds its budget {budget:.3e}\n"
        f"  budget = {factor:g} * baseline error {baseline_error:.3e} + rounding {atol:.3e}\n"
        f"  worst at {index}: actual {actual[index].item():.9g}, exact {exact64[index].item():.9g}"
        f", baseline {baseline[index].item():.9g}\n"
        f"  {int((error > budget).sum())} of {error.numel()} elements exceed it ({dtype})"
    )


def assert_same(actual: Any, expected: Any, name: str = "results") -> None:
    """Equal but for the rounding of fp64: for two ways to compute one formula."""
    message = (name + ": {}").format
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11, msg=message)


def rounding_atol(exact: Tensor, dtype: torch.dtype) -> float:
    """What rounding alone explains, in absolute terms.

    First, twice the wobble of adding and removing 0.3 in the result's dtype. Second, four ulps of
    the accumulator (fp32, for fp64 results fp64) at the result's magnitude or at 1: a baseline
    can be right by luck (one key makes P exactly 1 and dS exactly 0) where another order of
    summation leaves a rounding of the intermediate values, which are of order 1.
    """
    rounded = exact.to(dtype)
    wobble = ((rounded + 0.3 - 0.3) - rounded).abs().max().item()
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    magnitude = max(1.0, exact.abs().max().item())
    return 2.0 * wobble + 4.0 * torch.finfo(accumulator).eps * magnitude


def _baseline_error(exact: Tensor, baseline: Tensor, name: str) -> float:
    finite, baseline = exact.isfinite(), baseline.detach().double()
    broken = finite & ~baseline.isfinite()
    assert not broken.any(), (
        f"{name}: the baseline itself is not finite at {int(broken.sum())} positions; "
        "choose a case that torch can compute in this dtype"
    )
    error = torch.where(finite, baseline - exact.detach(), 0.0).abs()
    return error.max().item() if error.numel() else 0.0


def _precision_ratio(actual: torch.dtype, baseline: torch.dtype) -> float:
    """Errors scale with the machine epsilon; only an fp64 result is finer than its baseline."""
    if actual != torch.float64:
        return 1.0
    return torch.finfo(actual).eps / torch.finfo(baseline).eps


def _assert_same_anomalies(actual: Tensor, exact: Tensor, name: str) -> None:
    for kind, where in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = where(actual) != where(exact)
        if wrong.any():
            index = tuple(int(i) for i in wrong.nonzero()[0])
            raise AssertionError(
                f"{name}: {kind} at {int(wrong.sum())} of {wrong.numel()} positions differs, "
                f"first at {index}: actual {actual[index].item():.9g}, "
                f"exact {exact[index].item():.9g}"
            )
