"""The inner loop of dQ: what a run of keys contributes to one block of queries."""

from __future__ import annotations

import triton
import triton.language as tl

from .backward_tile import score_gradients
from .philox import dropout_keep
from .scores import load_bias, visible_keys
from .tiles import load_rows


@triton.jit
def add_keys(
    dQ,
    Q,
    dO,
    row_lse,
    row_delta,
    q_row,
    begin,
    end,
    jump_at,
    jump,
    key,
    key_row,
    value,
    value_row,
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
    MASKED: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """dQ (without the scale) plus what keys contribute.

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
        dP = tl.dot(dO, tl.trans(V), input_precision=PRECISION)
        visible = 0
        if MASKED:
            visible = visible_keys(left, right, offset, q_row, rows_q, k_row, rows_k)
        bias_tile = 0
        if HAS_BIAS:
            exists = (q_row < rows_q)[:, None] & (k_row < rows_k)[None, :]
            bias_tile = load_bias(
                bias, q_row[:, None], k_row[None, :], bias_query, bias_key, exists
            )
        keep = 0
        if HAS_DROPOUT:
            keep = dropout_keep(rng_state, stream, q_row, k_begin, threshold, BLOCK_KV)
        _, dS, gradient = score_gradients(
            *(S, dP, row_lse[:, None], row_delta[:, None], visible, keep, bias_tile, slope),
            q_row[:, None] + offset - k_row[None, :],
            *(scale, exponent_scale, softcap, keep_scale, MASKED, FOLD_SCALE, HAS_SOFTCAP),
            *(HAS_BIAS, HAS_ALIBI, HAS_DROPOUT, ACCURATE),
        )
        dQ = tl.dot((dS * gradient).to(K.dtype), K, dQ, input_precision=PRECISION)
    return dQ
