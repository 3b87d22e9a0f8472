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
    head_begin,
    group,
    begin,
    steps,
    jump_at,
    jump,
    query,
    query_head,
    query_row,
    grad_out,
    grad_out_head,
    grad_out_row,
    lse,
    lse_head,
    delta,
    delta_head,
    grad_query,
    grad_query_head,
    grad_query_row,
    bias,
    bias_head,
    bias_query,
    bias_key,
    alibi_slopes,
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
    """dK (without the scale) and dV plus what queries of a group of heads contribute.

    Pointers and stream are those of head 0. Each head has `steps` steps from `begin` on. MASKED:
    from `jump_at` on they lie `jump` queries further. Else all of the queries exist and see all of
    the keys.
    """
    # One loop over all heads, so that the loads of the next head begin during the last step.
    for index in range(0, group * steps):
        head = head_begin + index // steps
        q_begin = begin + index % steps * BLOCK_Q
        if MASKED:
            q_begin = tl.where(q_begin >= jump_at, q_begin + jump, q_begin)
        q_row = q_begin + tl.arange(0, BLOCK_Q)
        wide_head = tl.cast(head, tl.int64)
        query_base = query + wide_head * query_head
        Q = load_rows(query_base, q_row, rows_q, query_row, DIM, DIM_BLOCK, MASKED)
        row_lse, row_delta = load_statistics(
            lse + wide_head * lse_head, delta + wide_head * delta_head, q_row, rows_q
        )
        dO = load_grad_out(
            grad_out + wide_head * grad_out_head,
            *(q_row, row_lse, rows_q, grad_out_row, VALUE_DIM, VALUE_BLOCK),
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
                bias + wide_head * bias_head,
                *(q_row[None, :], k_row[:, None], bias_query, bias_key, exists),
            )
        slope = 0.0
        if HAS_ALIBI:
            slope = tl.load(alibi_slopes + head)
        keep = 0
        if HAS_DROPOUT:
            keep = tl.trans(
                dropout_keep(rng_state, stream + head, q_row, k_begin, threshold, BLOCK_KV)
            )
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
            pointers = row_pointers(
                grad_query + wide_head * grad_query_head, q_row, grad_query_row, DIM_BLOCK
            )
            mask = row_mask(q_row, rows_q, DIM, DIM_BLOCK, True)
            tl.atomic_add(pointers, dQ, mask=mask, sem="relaxed")
    return dK, dV
