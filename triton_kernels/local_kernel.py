"""The kernel of local.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .local_tile import (
    LOCAL_SIZES,
    gaussian,
    local_scores,
    local_windows,
    window_union,
)
from .products import product_of_rows
from .sequence import key_length
from .softmax import LOG2_E, online_softmax_finish, online_softmax_update
from .tiles import load_columns, operand_base, store_columns


@triton.jit(do_not_specialize=LOCAL_SIZES)
def local_kernel(
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
    out,
    out_batch,
    out_head,
    out_row,
    lse,
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
    """One block of queries of one head, VALUE_BLOCK columns of the values.

    position, sigma and lse are contiguous [B, Hq, Lq]. Programs of further columns compute the
    scores again, which only values wider than a block ask for.
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
    columns = columns_of * VALUE_BLOCK + tl.arange(0, VALUE_BLOCK)
    query_base = operand_base(query, b, head, 0, query_batch, query_head, query_row)
    key_base = operand_base(key, b, head_kv, 0, key_batch, key_head, key_row)
    value_base = operand_base(value, b, head_kv, 0, value_batch, value_head, value_row)

    row_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, VALUE_BLOCK], tl.float32)
    begin, end = window_union(window_begin, window_end)
    for k_begin in range(begin, end, BLOCK_KV):
        k_row = k_begin + tl.arange(0, BLOCK_KV)
        k_exists = k_row < end
        products = product_of_rows(
            *(query_base, q_row, q_exists, query_row, key_base, k_row, k_exists, key_row),
            *(DIM, DIM_BLOCK, PRECISION, BLOCK_Q, BLOCK_KV),
        )
        t = (k_row[None, :].to(tl.float32) - p[:, None]) * inverse[:, None]
        visible = (window_begin[:, None] <= k_row[None, :]) & (k_row[None, :] < window_end[:, None])
        S = local_scores(products, t, visible, scale, LOG_BIAS)
        P, row_max, row_sum, alpha = online_softmax_update(S, row_max, row_sum, LOG2_E, True)
        if not LOG_BIAS:
            P *= gaussian(t)
        # Values beyond a length may be NaN, and 0 * NaN is NaN: they are loaded as 0.
        V = load_columns(value_base, k_row, k_exists, value_row, columns, VALUE_DIM)
        acc = tl.dot(P.to(V.dtype), V, acc * alpha[:, None], input_precision=PRECISION)

    weight, row_lse = online_softmax_finish(row_max, row_sum, 1.0)
    out_base = operand_base(out, b, head, 0, out_batch, out_head, out_row)
    store_columns(out_base, q_row, q_exists, out_row, columns, VALUE_DIM, acc * weight[:, None])
    tl.store(lse + rows, row_lse, mask=q_exists & (columns_of == 0))
