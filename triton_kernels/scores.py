"""From products q . k to scores: scale, softcap, bias, ALiBi, mask, in this order.

Where nothing but the scale is asked for, scores stay Q K^T and the scale stands in the exponent:
e^(scale * x) = 2^(exponent_scale * x) (FOLD_SCALE). Else scores are natural ones. Forward, backward
and decoding all come through here, so they cannot differ.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .band import band_kv_range
from .softmax import LOG2_E


class ScoreTerms(NamedTuple):
    """Scale and softcap as kernels take them."""

    scale: float
    exponent_scale: float  # scores times this are exponents of 2
    unit: float  # scores times this are natural scores
    fold_scale: bool  # scores are Q K^T, not yet scaled


def score_terms(scale: float, softcap: float, changed: bool) -> ScoreTerms:
    """What a kernel does with the scale; `changed`: a bias or ALiBi is added to the scores.

    Folding needs a positive scale, as the maximum of the exponents has to be that of the scores,
    and one that does not make the score of a sink, sink / scale, infinite.
    """
    if softcap == 0.0 and not changed and scale > 1e-20:
        return ScoreTerms(scale, scale * LOG2_E.value, scale, True)
    return ScoreTerms(scale, LOG2_E.value, 1.0, False)


@triton.jit
def tanh(x, ACCURATE: tl.constexpr):
    """tanh by 2^x; ACCURATE: within some ulps near zero, too, where the short form cancels."""
    size = tl.abs(x)
    result = 1.0 - 2.0 / (tl.exp2(size * (2.0 * LOG2_E)) + 1.0)
    if ACCURATE:
        square = x * x
        # The odd polynomial of least error for |x| < 0.625.
        series = -5.70498872745e-3
        series = series * square + 2.06390887954e-2
        series = series * square - 5.37397155531e-2
        series = series * square + 1.33314422036e-1
        series = series * square - 3.33332819422e-1
        result = tl.where(size < 0.625, series * square * size + size, result)
    return tl.where(x < 0.0, -result, result)


@triton.jit
def load_bias(bias, q_row, k_row, row_stride, key_stride, visible):
    """Bias of a tile in fp32, 0 where not `visible`; `bias` points to the batch row and head.

    q_row: [queries, 1] and k_row: [1, keys], or transposed; strides of broadcast dims are 0.
    """
    offsets = tl.cast(q_row, tl.int64) * row_stride + tl.cast(k_row, tl.int64) * key_stride
    return tl.load(bias + offsets, mask=visible, other=0.0).to(tl.float32)


@triton.jit
def change_scores(
    S,
    scale,
    softcap,
    bias,
    slope,
    distance,
    FOLD_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    ACCURATE: tl.constexpr,
):
    """Scores without the mask, and d(score) / d(scale * q . k): 1 without a softcap.

    bias: the tile of `load_bias`; slope, distance: ALiBi's, distance = i + offset - j.
    """
    gradient = 1.0
    if not FOLD_SCALE:
        S = S * scale
    if HAS_SOFTCAP:
        t = tanh(S / softcap, ACCURATE)
        S = softcap * t
        gradient = 1.0 - t * t
    if HAS_BIAS:
        S = S + bias
    if HAS_ALIBI:
        S = S - slope * tl.abs(distance).to(tl.float32)
    return S, gradient


@triton.jit
def visible_keys(left, right, offset, q_row, q_end, k_row, kv_length):
    """Which keys of a tile its queries see: bool [queries, keys].

    q_row: [queries]; rows at and after q_end see nothing. k_row: [keys].
    """
    begin, end = band_kv_range(left, right, offset, q_row, q_row + 1, kv_length)
    end = tl.where(q_row < q_end, end, 0)
    return (begin[:, None] <= k_row[None, :]) & (k_row[None, :] < end[:, None])
