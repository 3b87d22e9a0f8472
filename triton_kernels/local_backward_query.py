"""dQ and the gradients of position and sigma of one block of queries.

for each step of keys in the union of the windows:
    S = Q K^T    dP = dO V^T    dS, u
    dQ += dS K    dposition += u t    dsigma += u t^2
"""

from __future__ import annotations

import triton
import triton.language as tl

from .backward_tile import load_natural_statistics
from .local_tile import (
    LOCAL_SIZES,
    local_score_gradients,
    local_scores,
    local_windows,
    window_union,
)
from .products import product_of_rows
from .sequence import key_length
from .tiles import load_columns, operand_base, store_columns


@triton.jit(do_not_specialize=LOCAL_SIZES)
def local_backward_query_kernel(
    query,
    query_batch,
    query_head,
    query_row,
    key,
    key_batch,
    key_head,
    key_row,
    value,
    value_batch,
    value_head,
    value_row,
    position,
    sigma,
    row_batch,
    row_head,
    grad_out,
    grad_out_batch,
    grad_out_head,
    grad_out_row,
    lse,
    delta,
    grad_query,
    grad_query_batch,
    grad_query_head,
    grad_query_row,
    grad_position,
    grad_sigma,
    windows,
    key_lengths,
    heads_q,
    group,
    len_q,
    len_k,
    half,
    fixed_inverse,
    scale,
    blocks,
    groups,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    HAS_SIGMA: tl.constexpr,
    LOG_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """DIM_BLOCK columns of dQ; the program of the first ones does the rest.

    grad_position and grad_sigma are like position. windows: int32 [B * Hq, blocks, 2], the union of
    each block's windows, which the kernel of the keys looks for its queries in.
    """
    columns_of, program = tl.program_id(0) % groups, tl.program_id(0) // groups
    head = program // blocks % heads_q
    b = program // blocks // heads_q
    head_kv = head // group
    rows_k = key_length(key_lengths, b, len_k, HAS_LENGTHS)
    q_row = program % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q_exists = q_row < len_q
    rows = tl.cast(b, tl.int64) * row_batch + tl.cast(head, tl.int64) * row_head + q_row
    p, inverse, window_begin, window_end = local_windows(
        position + rows,
        sigma + rows if HAS_SIGMA else sigma,
        q_exists,
        half,
        rows_k,
        fixed_inverse,
        HAS_SIGMA,
    )
    row_lse, row_delta = load_natural_statistics(lse + rows, delta + rows, q_exists)
    # grad_out of a row that sees nothing may be NaN.
    alive = row_lse != float("inf")
    columns = columns_of * DIM_BLOCK + tl.arange(0, DIM_BLOCK)
    query_base = operand_base(query, b, head, 0, query_batch, query_head, query_row)
    dO_base = operand_base(grad_out, b, head, 0, grad_out_batch, grad_out_head, grad_out_row)
    key_base = operand_base(key, b, head_kv, 0, key_batch, key_head, key_row)
    value_base = operand_base(value, b, head_kv, 0, value_batch, value_head, value_row)

    dQ = tl.zeros([BLOCK_Q, DIM_BLOCK], tl.float32)
    dposition = tl.zeros([BLOCK_Q], tl.float32)
    dsigma = tl.zeros([BLOCK_Q], tl.float32)
    begin, end = window_union(window_begin, window_end)
    for k_begin in range(begin, end, BLOCK_KV):
        k_row = k_begin + tl.arange(0, BLOCK_KV)
        k_exists = k_row < end
        products = product_of_rows(
            *(query_base, q_row, q_exists, query_row, key_base, k_row, k_exists, key_row),
            *(DIM, DIM_BLOCK, PRECISION, BLOCK_Q, BLOCK_KV),
        )
        dP = product_of_rows(
            *(dO_base, q_row, alive, grad_out_row, value_base, k_row, k_exists, value_row),
            *(VALUE_DIM, VALUE_BLOCK, PRECISION, BLOCK_Q, BLOCK_KV),
        )
        t = (k_row[None, :].to(tl.float32) - p[:, None]) * inverse[:, None]
        visible = (window_begin[:, None] <= k_row[None, :]) & (k_row[None, :] < window_end[:, None])
        S = local_scores(products, t, visible, scale, LOG_BIAS)
        _, dS, u = local_score_gradients(S, dP, row_lse[:, None], row_delta[:, None], t, LOG_BIAS)
        K = load_columns(key_base, k_row, k_exists, key_row, columns, DIM)
        dQ = tl.dot(dS.to(K.dtype), K, dQ, input_precision=PRECISION)
        dposition += tl.sum(u * t, 1)
        dsigma += tl.sum(u * t * t, 1)

    dQ_base = operand_base(
        grad_query, b, head, 0, grad_query_batch, grad_query_head, grad_query_row
    )
    store_columns(dQ_base, q_row, q_exists, grad_query_row, columns, DIM, dQ * scale)
    if columns_of == 0:
        tl.store(grad_position + rows, dposition * inverse, mask=q_exists)
        if HAS_SIGMA:
            tl.store(grad_sigma + rows, dsigma * inverse, mask=q_exists)
        tl.store(windows + 2 * program, begin)
        tl.store(windows + 2 * program + 1, end)
