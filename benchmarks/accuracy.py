"""The accuracy rule: a kernel's error against an fp64 reference, as a share of what is allowed.

Allowed is a small multiple of the error that the plain formula makes in the same dtype, plus what
rounding alone explains. So it adapts to lengths, magnitudes and dtypes, and a wrong mask breaks it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FORWARD_FACTOR = 2.0
GRADIENT_FACTOR = 3.0


def error_ratio(
    actual: Tensor,
    naive: Tensor,
    reference: Tensor,
    *,
    gradient: bool = False,
) -> float:
    """Error over allowed error; at most 1 passes.

    Args:
        actual: what the kernel gave.
        naive: the plain formula in the kernel's dtype. For an fp64 kernel it is computed in fp32
            and its error is scaled: in fp64 it would be the reference itself.
        reference: the exact result, fp64, of the same shape.
        gradient: whether the wider factor of gradients holds.
    """
    dtype = actual.dtype
    precision = torch.finfo(dtype).eps / torch.finfo(naive.dtype).eps
    naive_error = max_error(naive, reference) * min(precision, 1.0)
    if math.isinf(naive_error):  # a yardstick that overflows excuses nothing
        naive_error = 0.0
    factor = GRADIENT_FACTOR if gradient else FORWARD_FACTOR
    allowed = factor * naive_error + rounding_error(reference, dtype)
    return max_error(actual, reference) / allowed


def finite(ratio: float) -> float | None:
    """The ratio as JSON can hold it: None where a NaN or an infinity made it infinite."""
    return ratio if math.isfinite(ratio) else None


def max_error(actual: Tensor, reference: Tensor) -> float:
    """Largest |actual - reference|; infinite where only one of them is infinite or NaN.

    Equal infinities (the lse of a row that sees no key) are no error.
    """
    if actual.shape != reference.shape:
        return math.inf
    if actual.numel() == 0:
        return 0.0
    wide, exact = actual.detach().double(), reference.detach()
    same = (wide == exact) | (wide.isnan() & exact.isnan())
    error = torch.where(same, 0.0, (wide - exact).abs())
    return float(error.nan_to_num(nan=math.inf, posinf=math.inf).max())


def rounding_error(reference: Tensor, dtype: torch.dtype) -> float:
    """What rounding alone explains, in absolute terms.

    Twice the wobble of adding and removing 0.3 in the result's dtype, and four units in the last
    place of the accumulator at the result's magnitude, at least at 1: where P is exactly 1 and dS
    exactly 0 the naive formula may be right by luck.
    """
    finite = reference.detach()[reference.detach().isfinite()].to(dtype)
    wobble = float(((finite + 0.3 - 0.3) - finite).abs().max()) if finite.numel() else 0.0
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    return 2.0 * wobble + 4.0 * torch.finfo(accumulator).eps * max(1.0, largest(reference))


def largest(reference: Tensor) -> float:
    """Largest finite magnitude, 0 if there is none."""
    finite = reference.detach()[reference.detach().isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
