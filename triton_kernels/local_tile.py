"""What the kernels of local attention do with a tile of queries and keys.

    window_i = keys j with |j - floor(p_i)| <= half      t_ij = (j - p_i) / sigma_i
    g_ij = e^(-t_ij^2 / 2)    S_ij = scale * q_i . k_j, and with LOG_BIAS + ln g_ij

Without LOG_BIAS the Gaussian weighs the values, not the denominator of the softmax.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import SIZES
from .band import band_clip
from .softmax import LOG2_E

# Integers that a kernel is not compiled anew for; see arguments.py.
LOCAL_SIZES = (*SIZES, "half", "groups")
_FAR = tl.constexpr(2147483648.0)  # further than any key from any other


@triton.jit
def local_windows(position, sigma, exists, half, rows_k, fixed_inverse, HAS_SIGMA: tl.constexpr):
    """(position, 1 / sigma, first key, end of the keys) of each query; (0, 0) if it sees none.

    position, sigma: pointers to the numbers of each query; exists: which there are.
    """
    p = tl.load(position, mask=exists, other=0.0)
    inverse = tl.zeros_like(p) + fixed_inverse
    if HAS_SIGMA:
        inverse = 1.0 / tl.load(sigma, mask=exists, other=1.0)
    center = tl.minimum(tl.maximum(tl.floor(p), -_FAR), _FAR).to(tl.int64)
    begin, end = band_clip(center - half, center + half + 1, tl.cast(rows_k, tl.int64))
    return p, inverse, begin, tl.where(exists, end, 0)


@triton.jit
def window_union(begin, end):
    """Keys [begin, end) that any of the queries sees: with gaps, if windows lie apart."""
    some = begin < end
    first = tl.min(tl.where(some, begin, 2147483647), 0)
    return first, tl.max(tl.where(some, end, 0), 0)


@triton.jit
def gaussian(t):
    return tl.exp2(t * t * (-0.5 * LOG2_E))


@triton.jit
def local_scores(products, t, visible, scale, LOG_BIAS: tl.constexpr):
    """Scores from products q . k, -inf outside of the windows."""
    S = products * scale
    if LOG_BIAS:
        S -= 0.5 * t * t
    return tl.where(visible, S, float("-inf"))


@triton.jit
def local_score_gradients(S, dP, lse, delta, t, LOG_BIAS: tl.constexpr):
    """(weights of dO, dS, gradient of ln g) from scores and dP = dO . v.

    lse: +inf in rows that see no key, so that P = e^-inf = 0. The difference comes first: with a
    small sigma both of its terms are large.
    """
    P = tl.exp2((S - lse) * LOG2_E)
    if LOG_BIAS:
        dS = P * (dP - delta)
        return P, dS, dS
    else:
        g = gaussian(t)
        weights = P * g
        # The denominator knows no Gaussian, hence dln_g neither delta nor the gradient of lse.
        return weights, P * (g * dP - delta), weights * dP
