"""dK and dV of one block of keys.

    for each query head of the group, for each block of queries whose windows reach the keys:
        S^T = K Q^T    dP^T = V dO^T    W^T, dS^T
        dV += W^T dO   dK += dS^T Q

Every sum is one program's, in a fixed order.
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
)
from .products import product_of_rows
from .sequence import key_length
from .tiles import load_columns, operand_base, store_columns

_LOOK = tl.constexpr(128)  # blocks of queries that are looked at at a time


@triton.jit
def blocks_that_reach(windows, blocks, k_begin, k_end):
    """The first and the end of the blocks whose windows, [blocks, 2], reach [k_begin, k_end)."""
    first = blocks
    last = 0
    for start in range(0, blocks, _LOOK):
        block = start + tl.arange(0, _LOOK)
        exists = block < blocks
        begin = tl.load(windows + 2 * block, mask=exists, other=0)
        end = tl.load(windows + 2 * block + 1, mask=exists, other=0)
        reaches = (begin < k_end) & (k_begin < end)
        first = tl.minimum(first, tl.min(tl.where(reaches, block, blocks), 0))
        last = tl.maximum(last, tl.max(tl.where(reaches, block + 1, 0), 0))
    return first, last


@triton.jit(do_not_specialize=(*LOCAL_SIZES, "key_blocks"))
def local_backward_key_kernel(
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
    grad_key,
    grad_key_batch,
    grad_key_head,
    grad_key_row,
    grad_value,
    grad_value_batch,
    grad_value_head,
    grad_value_row,
    windows,
    key_lengths,
    heads_q,
    heads_kv,
    group,
    len_q,
    len_k,
    half,
    fixed_inverse,
    scale,
    blocks,
    key_blocks,
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
    """DIM_BLOCK columns of dK and VALUE_BLOCK of dV; windows: see the kernel of the queries."""
    columns_of, program = tl.program_id(0) % groups, tl.program_id(0) // groups
    k_begin = program % key_blocks * BLOCK_KV
    head_kv = program // key_blocks % heads_kv
    b = program // key_blocks // heads_kv
    rows_k = key_length(key_lengths, b, len_k, HAS_LENGTHS)
    k_row = k_begin + tl.arange(0, BLOCK_KV)
    k_exists = k_row < rows_k
    columns = columns_of * DIM_BLOCK + tl.arange(0, DIM_BLOCK)
    value_columns = columns_of * VALUE_BLOCK + tl.arange(0, VALUE_BLOCK)
    key_base = operand_base(key, b, head_kv, 0, key_batch, key_head, key_row)
    value_base = operand_base(value, b, head_kv, 0, value_batch, value_head, value_row)

    dK = tl.zeros([BLOCK_KV, DIM_BLOCK], tl.float32)
    dV = tl.zeros([BLOCK_KV, VALUE_BLOCK], tl.float32)
    for head in range(head_kv * group, head_kv * group + group):
        query_base = operand_base(query, b, head, 0, query_batch, query_head, query_row)
        dO_base = operand_base(grad_out, b, head, 0, grad_out_batch, grad_out_head, grad_out_row)
        head_rows = tl.cast(b, tl.int64) * row_batch + tl.cast(head, tl.int64) * row_head
        head_windows = windows + (tl.cast(b, tl.int64) * heads_q + head) * blocks * 2
        k_end = tl.minimum(k_begin + BLOCK_KV, rows_k)
        first, last = blocks_that_reach(head_windows, blocks, k_begin, k_end)
        for block in range(first, last):
            union_begin = tl.load(head_windows + 2 * block)
            union_end = tl.load(head_windows + 2 * block + 1)
            if (union_begin < k_end) & (k_begin < union_end):
                q_row = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
                q_exists = q_row < len_q
                rows = head_rows + q_row
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
                alive = row_lse != float("inf")
                products = product_of_rows(
                    *(key_base, k_row, k_exists, key_row, query_base, q_row, q_exists, query_row),
                    *(DIM, DIM_BLOCK, PRECISION, BLOCK_KV, BLOCK_Q),
                )
                dP = product_of_rows(
                    *(value_base, k_row, k_exists, value_row, dO_base, q_row, alive, grad_out_row),
                    *(VALUE_DIM, VALUE_BLOCK, PRECISION, BLOCK_KV, BLOCK_Q),
                )
                t = (k_row[:, None].to(tl.float32) - p[None, :]) * inverse[None, :]
                visible = (window_begin[None, :] <= k_row[:, None]) & (
                    k_row[:, None] < window_end[None, :]
                )
                S = local_scores(products, t, visible, scale, LOG_BIAS)
                weights, dS, _ = local_score_gradients(
                    S, dP, row_lse[None, :], row_delta[None, :], t, LOG_BIAS
                )
                Q = load_columns(query_base, q_row, q_exists, query_row, columns, DIM)
                dO = load_columns(dO_base, q_row, alive, grad_out_row, value_columns, VALUE_DIM)
                dK = tl.dot(dS.to(Q.dtype), Q, dK, input_precision=PRECISION)
                dV = tl.dot(weights.to(dO.dtype), dO, dV, input_precision=PRECISION)

    dK_base = operand_base(grad_key, b, head_kv, 0, grad_key_batch, grad_key_head, grad_key_row)
    store_columns(dK_base, k_row, k_row < len_k, grad_key_row, columns, DIM, dK * scale)
    dV_base = operand_base(
        grad_value, b, head_kv, 0, grad_value_batch, grad_value_head, grad_value_row
    )
    store_columns(dV_base, k_row, k_row < len_k, grad_value_row, value_columns, VALUE_DIM, dV)
