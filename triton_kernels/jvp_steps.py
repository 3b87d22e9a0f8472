"""The inner loop of forward mode: what a run of keys adds to a block of queries."""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import dropout_keep
from .scores import change_scores, load_bias, visible_keys
from .softmax import online_softmax_update
from .tiles import load_rows


@triton.jit
def move_with_keys(
    sums,
    moved_sums,
    row_max,
    row_sum,
    row_moved,
    Q,
    query_tangent,
    q_row,
    begin,
    end,
    jump_at,
    jump,
    key,
    key_row,
    value,
    value_row,
    key_tangent,
    key_tangent_row,
    value_tangent,
    value_tangent_row,
    bias,
    bias_query,
    bias_key,
    bias_tangent,
    bias_tangent_query,
    bias_tangent_key,
    slope,
    rng_state,
    stream,
    rows_q,
    rows_k,
    left,
    right,
    offset,
    scale,
    exponent_scale,
    softcap,
    threshold,
    keep_scale,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    FOLD_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    MOVES_QUERY: tl.constexpr,
    MOVES_KEY: tl.constexpr,
    MOVES_VALUE: tl.constexpr,
    MOVES_BIAS: tl.constexpr,
    ACCURATE: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """The running sums P V, P dS V + P dV, maximum, P and P dS of the rows, the keys added.

    MASKED: the keys [begin, end + jump), those of [jump_at, jump_at + jump) left out. Else
    [begin, end), all of which exist and are seen by all queries that exist.
    """
    for k_begin in range(begin, end, BLOCK_KV):
        if MASKED:
            k_begin = tl.where(k_begin >= jump_at, k_begin + jump, k_begin)
        k_row = k_begin + tl.arange(0, BLOCK_KV)
        K = load_rows(key, k_row, rows_k, key_row, DIM, DIM_BLOCK, MASKED)
        V = load_rows(value, k_row, rows_k, value_row, VALUE_DIM, VALUE_BLOCK, MASKED)
        S = tl.dot(Q, tl.trans(K), input_precision=PRECISION)
        dS = tl.zeros_like(S)
        if MOVES_QUERY:
            dS = tl.dot(query_tangent, tl.trans(K), dS, input_precision=PRECISION)
        if MOVES_KEY:
            dK = load_rows(key_tangent, k_row, rows_k, key_tangent_row, DIM, DIM_BLOCK, MASKED)
            dS = tl.dot(Q, tl.trans(dK), dS, input_precision=PRECISION)

        exists = (q_row < rows_q)[:, None] & (k_row < rows_k)[None, :]
        bias_tile = 0
        if HAS_BIAS:
            bias_tile = load_bias(
                bias, q_row[:, None], k_row[None, :], bias_query, bias_key, exists
            )
        S, gradient = change_scores(
            *(S, scale, softcap, bias_tile, slope),
            q_row[:, None] + offset - k_row[None, :],
            *(FOLD_SCALE, HAS_SOFTCAP, HAS_BIAS, HAS_ALIBI, ACCURATE),
        )
        dS = dS * (scale * gradient)
        if MOVES_BIAS:
            dS += load_bias(
                *(bias_tangent, q_row[:, None], k_row[None, :]),
                *(bias_tangent_query, bias_tangent_key, exists),
            )
        if MASKED:
            visible = visible_keys(left, right, offset, q_row, rows_q, k_row, rows_k)
            S = tl.where(visible, S, float("-inf"))
        if MASKED or HAS_BIAS:
            # What is hidden has weight 0, and 0 * NaN would be NaN.
            dS = tl.where(float("-inf") < S, dS, 0.0)

        P, row_max, row_sum, alpha = online_softmax_update(S, row_max, row_sum, exponent_scale)
        moved = P * dS
        row_moved = row_moved * alpha + tl.sum(moved, 1)
        if HAS_DROPOUT:
            keep = dropout_keep(rng_state, stream, q_row, k_begin, threshold, BLOCK_KV)
            P = tl.where(keep, P * keep_scale, 0.0)
            moved = tl.where(keep, moved * keep_scale, 0.0)
        weights = P.to(V.dtype)
        sums = tl.dot(weights, V, sums * alpha[:, None], input_precision=PRECISION)
        moved_sums = tl.dot(
            moved.to(V.dtype), V, moved_sums * alpha[:, None], input_precision=PRECISION
        )
        if MOVES_VALUE:
            dV = load_rows(
                value_tangent, k_row, rows_k, value_tangent_row, VALUE_DIM, VALUE_BLOCK, MASKED
            )
            moved_sums = tl.dot(weights, dV, moved_sums, input_precision=PRECISION)
    return sums, moved_sums, row_max, row_sum, row_moved
