"""The kernel of additive.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .additive_tile import ADDITIVE_SIZES, additive_scores
from .band import band_kv_range
from .products import add_weighted_rows
from .scores import visible_keys
from .sequence import key_length
from .softmax import LOG2_E, online_softmax_finish, online_softmax_update
from .tiles import load_columns, operand_base, store_columns


@triton.jit(do_not_specialize=ADDITIVE_SIZES)
def additive_kernel(
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
    out,
    out_batch,
    out_head,
    out_row,
    lse,
    lse_batch,
    lse_head,
    key_lengths,
    heads,
    len_q,
    len_k,
    left,
    right,
    offset,
    blocks,
    groups,
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
    """One block of queries of one head, VALUE_BLOCK columns of the values.

    Programs of further columns compute the scores again, which only values wider than a block ask
    for.
    """
    group, program = tl.program_id(0) % groups, tl.program_id(0) // groups
    # The last blocks first: under a causal mask they see the most keys.
    q_begin = (blocks - 1 - program % blocks) * BLOCK_Q
    head = program // blocks % heads
    b = program // blocks // heads
    rows_k = key_length(key_lengths, b, len_k, HAS_LENGTHS)
    q_row = q_begin + tl.arange(0, BLOCK_Q)
    q_exists = q_row < len_q
    columns = group * VALUE_BLOCK + tl.arange(0, VALUE_BLOCK)
    query_base = operand_base(query, b, head, 0, query_batch, query_head, query_row)
    key_base = operand_base(key, b, head, 0, key_batch, key_head, key_row)
    value_base = operand_base(value, b, head, 0, value_batch, value_head, value_row)

    row_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, VALUE_BLOCK], tl.float32)
    q_end = tl.minimum(q_begin + BLOCK_Q, len_q)
    begin, end = band_kv_range(left, right, offset, q_begin, q_end, rows_k)
    for k_begin in range(begin, end, BLOCK_KV):
        k_row = k_begin + tl.arange(0, BLOCK_KV)
        k_exists = k_row < rows_k
        S = additive_scores(
            *(query_base, q_row, q_exists, query_row, key_base, k_row, k_exists, key_row),
            *(v + head * DIM, DIM, DIM_BLOCK, ACCURATE, NATIVE_TANH, BLOCK_Q, BLOCK_KV),
        )
        visible = visible_keys(left, right, offset, q_row, len_q, k_row, rows_k)
        S = tl.where(visible, S, float("-inf"))
        P, row_max, row_sum, alpha = online_softmax_update(S, row_max, row_sum, LOG2_E, True)
        # Values beyond a length may be NaN, and 0 * NaN is NaN: they are loaded as 0.
        V = load_columns(value_base, k_row, k_exists, value_row, columns, VALUE_DIM)
        acc = add_weighted_rows(acc * alpha[:, None], P, V, PRECISION, BLOCK_Q)

    inverse, row_lse = online_softmax_finish(row_max, row_sum, 1.0)
    out_base = operand_base(out, b, head, 0, out_batch, out_head, out_row)
    store_columns(out_base, q_row, q_exists, out_row, columns, VALUE_DIM, acc * inverse[:, None])
    lse_rows = operand_base(lse, b, head, q_row, lse_batch, lse_head, 1)
    tl.store(lse_rows, row_lse, mask=q_exists & (group == 0))
