"""The inner loop of dK and dV: what a run of queries contributes to one block of keys."""

from __future__ import annotations

import triton
import triton.language as tl

from .backward_tile import load_grad_out, load_statistics, score_gradients, visible_queries
from .philox import dropout_keep
from .scores import load_bias
from .tiles import load_rows, row_mask, row_pointers


@triton.jit
def add_queries(
    dK,
    dV,
    K,
    V,
    k_row,
    k_begin,
    begin,
    end,
    jump_at,
    jump,
    query,
    query_row,
    grad_out,
    grad_out_row,
    lse,
    delta,
    grad_query,
    grad_query_row,
    bias,
    bias_query,
    bias_key,
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
    ACCURATE: tl.constexpr,
    PRECISION: tl.constexpr,
    DEAD_ROWS: tl.constexpr,
    FUSED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """dK (without the scale) and dV plus what queries of one head contribute.

    MASKED: the queries [begin, end + jump), those of [jump_at, jump_at + jump) left out. Else
    [begin, end), all of which exist and see all of the keys.
    """
    for q_begin in range(begin, end, BLOCK_Q):
        if MASKED:
            q_begin = tl.where(q_begin >= jump_at, q_begin + jump, q_begin)
        q_row = q_begin + tl.arange(0, BLOCK_Q)
        Q = load_rows(query, q_row, rows_q, query_row, DIM, DIM_BLOCK, MASKED)
        row_lse, row_delta = load_statistics(lse, delta, q_row, rows_q)
        dO = load_grad_out(
            *(grad_out, q_row, row_lse, rows_q, grad_out_row, VALUE_DIM, VALUE_BLOCK),
            *(MASKED, DEAD_ROWS),
        )
        S = tl.dot(K, tl.trans(Q), input_precision=PRECISION)
        dP = tl.dot(V, tl.trans(dO), input_precision=PRECISION)
        visible = 0
        if MASKED:
            visible = visible_queries(left, right, offset, k_row, rows_k, q_row, rows_q)
        bias_tile = 0
        if HAS_BIAS:
            exists = (k_row < rows_k)[:, None] & (q_row < rows_q)[None, :]
            bias_tile = load_bias(
                bias, q_row[None, :], k_row[:, None], bias_query, bias_key, exists
            )
        keep = 0
        if HAS_DROPOUT:
            keep = tl.trans(dropout_keep(rng_state, stream, q_row, k_begin, threshold, BLOCK_KV))
        weights, dS, gradient = score_gradients(
            *(S, dP, row_lse[None, :], row_delta[None, :], visible, keep, bias_tile, slope),
            q_row[None, :] + offset - k_row[:, None],
            *(scale, exponent_scale, softcap, keep_scale, MASKED, FOLD_SCALE, HAS_SOFTCAP),
            *(HAS_BIAS, HAS_ALIBI, HAS_DROPOUT, ACCURATE),
        )
        dV = tl.dot(weights.to(dO.dtype), dO, dV, input_precision=PRECISION)
        dS = (dS * gradient).to(Q.dtype)
        dK = tl.dot(dS, Q, dK, input_precision=PRECISION)
        if FUSED:
            dQ = tl.dot(tl.trans(dS), K, input_precision=PRECISION)
            pointers = row_pointers(grad_query, q_row, grad_query_row, DIM_BLOCK)
            mask = row_mask(q_row, rows_q, DIM, DIM_BLOCK, True)
            tl.atomic_add(pointers, dQ, mask=mask, sem="relaxed")
    return dK, dV
