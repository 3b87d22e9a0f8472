"""What the kernels of maps.py share: the scores of a tile, and weights from them."""

from __future__ import annotations

import triton
import triton.language as tl

from .scores import change_scores, load_bias, visible_keys
from .softmax import LOG2_E


@triton.jit
def chosen_head(heads, n, heads_q, HAS_HEADS: tl.constexpr):
    """The n-th of the chosen heads; a number that is no head, which the host cannot see, is cut."""
    h = n
    if HAS_HEADS:
        h = tl.minimum(tl.maximum(tl.load(heads + n), 0), heads_q - 1)
    return h


@triton.jit
def masked_scores(
    Q,
    K,
    q_row,
    k_row,
    rows_q,
    first_key,
    rows_k,
    bias_base,
    bias_query,
    bias_key,
    slope,
    left,
    right,
    offset,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    FOLD_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores [queries, keys] as scores.py has them, -inf where the key is hidden.

    q_row: [queries]; k_row: [keys]. rows_q, first_key, rows_k, slope and offset are scalars, or
    [queries] where the rows belong to several sequences.
    """
    S = tl.dot(Q, tl.trans(K), input_precision=PRECISION)
    visible = visible_keys(left, right, offset, q_row, rows_q, k_row, rows_k)
    visible = visible & ((first_key + tl.zeros_like(q_row))[:, None] <= k_row[None, :])
    bias = 0.0
    if HAS_BIAS:
        bias = load_bias(bias_base, q_row[:, None], k_row[None, :], bias_query, bias_key, visible)
    distance = 0
    row_slope = 0.0
    if HAS_ALIBI:
        distance = (q_row + offset)[:, None] - k_row[None, :]
        row_slope = (slope + tl.zeros_like(q_row).to(tl.float32))[:, None]
    S, _ = change_scores(
        *(S, scale, softcap, bias, row_slope, distance),
        *(FOLD_SCALE, HAS_SOFTCAP, HAS_BIAS, HAS_ALIBI, True),
    )
    return tl.where(visible, S, float("-inf"))


@triton.jit
def log_weights(S, lse, unit):
    """ln P of scores; lse: [queries]. -inf where a key is hidden, and in rows with lse -inf."""
    dead = lse == float("-inf")
    return tl.where(dead[:, None], float("-inf"), S * unit - tl.where(dead, 0.0, lse)[:, None])


@triton.jit
def weights_of(log_weight):
    return tl.exp2(log_weight * LOG2_E)
