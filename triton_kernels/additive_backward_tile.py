"""P and dS of additive attention, tile by tile, into memory.

    S = v . tanh(q + k)    P = e^(S - lse)    dP = dO V^T    dS = P * (dP - delta)

Every gradient needs them for all dims; made once, they cost one tanh for each query, key and dim.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .additive_tile import ADDITIVE_SIZES, additive_scores
from .backward_tile import load_natural_statistics
from .band import band_kv_range
from .products import product_of_rows
from .scores import visible_keys
from .sequence import key_length
from .softmax import LOG2_E
from .tiles import operand_base, store_columns


@triton.jit(do_not_specialize=ADDITIVE_SIZES)
def additive_backward_tile_kernel(
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
    v,
    grad_out,
    grad_out_batch,
    grad_out_head,
    grad_out_row,
    lse,
    lse_batch,
    lse_head,
    delta,
    delta_batch,
    delta_head,
    weights,
    grad_scores,
    key_lengths,
    heads,
    len_q,
    len_k,
    left,
    right,
    offset,
    first_item,
    first_query,
    rows,
    blocks,
    key_blocks,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    ACCURATE: tl.constexpr,
    NATIVE_TANH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
):
    """A tile of weights (P) and grad_scores (dS), [items, rows, len_k]: heads from first_item on.

    Row r is query first_query + r. Where a query does not see a key both are 0.
    """
    k_begin = tl.program_id(0) % key_blocks * BLOCK_KV
    program = tl.program_id(0) // key_blocks
    row = program % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    item = program // blocks
    b = (first_item + item) // heads
    head = (first_item + item) % heads
    rows_k = key_length(key_lengths, b, len_k, HAS_LENGTHS)
    q_begin = first_query + program % blocks * BLOCK_Q
    q_stop = tl.minimum(first_query + rows, len_q)
    q_row = first_query + row
    q_exists = q_row < q_stop
    k_row = k_begin + tl.arange(0, BLOCK_KV)
    k_exists = k_row < rows_k

    P = tl.zeros([BLOCK_Q, BLOCK_KV], tl.float32)
    dS = tl.zeros([BLOCK_Q, BLOCK_KV], tl.float32)
    q_end = tl.minimum(q_begin + BLOCK_Q, q_stop)
    begin, end = band_kv_range(left, right, offset, q_begin, q_end, rows_k)
    if (begin < k_begin + BLOCK_KV) & (k_begin < end):
        S = additive_scores(
            *(operand_base(query, b, head, 0, query_batch, query_head, query_row), q_row, q_exists),
            *(query_row, operand_base(key, b, head, 0, key_batch, key_head, key_row)),
            *(k_row, k_exists, key_row, v + head * DIM),
            *(DIM, DIM_BLOCK, ACCURATE, NATIVE_TANH, BLOCK_Q, BLOCK_KV),
        )
        visible = visible_keys(left, right, offset, q_row, q_stop, k_row, rows_k)
        row_lse, row_delta = load_natural_statistics(
            operand_base(lse, b, head, q_row, lse_batch, lse_head, 1),
            operand_base(delta, b, head, q_row, delta_batch, delta_head, 1),
            q_exists,
        )
        # grad_out of a row that sees nothing may be NaN.
        dP = product_of_rows(
            operand_base(grad_out, b, head, 0, grad_out_batch, grad_out_head, grad_out_row),
            *(q_row, row_lse != float("inf"), grad_out_row),
            operand_base(value, b, head, 0, value_batch, value_head, value_row),
            *(k_row, k_exists, value_row),
            *(VALUE_DIM, VALUE_BLOCK, PRECISION, BLOCK_Q, BLOCK_KV),
        )
        S = tl.where(visible, S, float("-inf"))
        # The difference comes first: the error of P shall not grow with the scores.
        P = tl.exp2((S - row_lse[:, None]) * LOG2_E)
        dS = P * (dP - row_delta[:, None])
    start = tl.cast(item, tl.int64) * rows * len_k
    exists = row < rows
    store_columns(weights + start, row, exists, len_k, k_row, len_k, P)
    store_columns(grad_scores + start, row, exists, len_k, k_row, len_k, dS)
