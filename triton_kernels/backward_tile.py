"""What all backward kernels do with a tile of scores, be it queries by keys or transposed.

    S = scale * Q K^T   P = e^(score - lse)   dP = dO V^T   dS = P * (dP - delta)

With dropout, whose mask Z is 0 or keep_scale, P * Z weighs dO and dP * Z stands for dP. dS is the
gradient of the bias; times the slope of the softcap it is that of S.

-inf: a row that sees no key has lse -inf. It counts as +inf here, so that P = 2^-inf = 0; so do
rows that do not exist. Its delta is 0, and its grad_out, which may be NaN, is not loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .band import band_q_range
from .scores import change_scores
from .softmax import LOG2_E
from .tiles import load_rows, row_pointers


@triton.jit
def load_natural_statistics(lse, delta, exists):
    """lse, +inf in rows that see nothing or do not exist, and delta; both are pointers to rows."""
    row_lse = tl.load(lse, mask=exists, other=float("-inf"))
    row_delta = tl.load(delta, mask=exists, other=0.0)
    return tl.where(row_lse == float("-inf"), float("inf"), row_lse), row_delta


@triton.jit
def load_statistics(lse, delta, q_row, len_q):
    """The same for the rows q_row of a head, lse as an exponent of 2."""
    row_lse, row_delta = load_natural_statistics(lse + q_row, delta + q_row, q_row < len_q)
    return row_lse * LOG2_E, row_delta


@triton.jit
def visible_queries(left, right, offset, k_row, k_end, q_row, len_q):
    """Which queries see the keys of a tile: bool [keys, queries].

    k_row: [keys]; keys at and after k_end are seen by nobody. q_row: [queries].
    """
    begin, end = band_q_range(left, right, offset, k_row, k_row + 1, len_q)
    end = tl.where(k_row < k_end, end, 0)
    return (begin[:, None] <= q_row[None, :]) & (q_row[None, :] < end[:, None])


@triton.jit
def split_steps(begin, end, full_begin, full_end, BLOCK: tl.constexpr):
    """Where the loop over [begin, end) parts, in steps of BLOCK; begin is a multiple of it.

    Returns (first, last): the steps in [first, last) lie inside [full_begin, full_end), those in
    [begin, first) and [last, end) need the mask. One loop takes both: it jumps over the others.
    """
    stop = tl.cdiv(end, BLOCK) * BLOCK
    first = tl.minimum(tl.maximum(tl.cdiv(full_begin, BLOCK) * BLOCK, begin), stop)
    return first, tl.maximum(full_end // BLOCK * BLOCK, first)


@triton.jit
def score_gradients(
    S,
    dP,
    lse,
    delta,
    visible,
    keep,
    bias,
    slope,
    distance,
    scale,
    exponent_scale,
    softcap,
    keep_scale,
    MASKED: tl.constexpr,
    FOLD_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    ACCURATE: tl.constexpr,
):
    """(weights of dO, dS, slope of the softcap or 1) from the products S = q . k and dP.

    lse and delta are shaped to broadcast over the keys; keep: the dropout's mask, if there is one;
    `visible` counts if MASKED.
    """
    S, gradient = change_scores(
        *(S, scale, softcap, bias, slope, distance),
        *(FOLD_SCALE, HAS_SOFTCAP, HAS_BIAS, HAS_ALIBI, ACCURATE),
    )
    if MASKED:
        S = tl.where(visible, S, float("-inf"))
    P = tl.exp2(S * exponent_scale - lse)
    weights = P
    if HAS_DROPOUT:
        weights = tl.where(keep, P * keep_scale, 0.0)
        dP = tl.where(keep, dP * keep_scale, 0.0)
    return weights, P * (dP - delta), gradient


@triton.jit
def load_grad_out(
    base,
    q_row,
    lse,
    rows_q,
    row_stride,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    DEAD_ROWS: tl.constexpr,
):
    """A tile of grad_out, 0 in rows that see nothing if there may be such (DEAD_ROWS).

    lse: of `load_statistics`. Where no row can be dead, loads need not wait for it.
    """
    if DEAD_ROWS:
        live = (lse != float("inf"))[:, None]
        mask = live & (tl.arange(0, VALUE_BLOCK) < VALUE_DIM)[None, :]
        return tl.load(row_pointers(base, q_row, row_stride, VALUE_BLOCK), mask=mask, other=0.0)
    else:
        return load_rows(base, q_row, rows_q, row_stride, VALUE_DIM, VALUE_BLOCK, CHECK_ROWS)
