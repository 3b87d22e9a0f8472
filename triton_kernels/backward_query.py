"""dQ of one block of queries, in the form that needs no atomic additions.

What a program does:
    for each step of keys that the block sees:
        S = Q K^T    dP = dO V^T    dS
        dQ += dS K
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import SIZES
from .backward_query_steps import add_keys
from .backward_tile import load_grad_out, load_statistics, split_steps
from .band import band_full_kv_range, band_kv_range
from .schedule import tile_index
from .sequence import sequence_of
from .tiles import load_rows, operand_base, store_rows


@triton.jit(do_not_specialize=SIZES)
def backward_query_kernel(
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
    grad_query,
    grad_query_batch,
    grad_query_head,
    grad_query_row,
    bias,
    bias_batch,
    bias_head,
    bias_query,
    bias_key,
    alibi_slopes,
    alibi_batch,
    kv_lengths,
    cu_seqlens_q,
    cu_seqlens_k,
    band_offsets,
    rng_state,
    batch,
    heads_q,
    group,
    len_q,
    len_k,
    total_q,
    total_k,
    left,
    right,
    offset,
    scale,
    exponent_scale,
    softcap,
    threshold,
    keep_scale,
    blocks,
    heads,
    section,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    FOLD_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    IS_PACKED: tl.constexpr,
    HAS_KV_LENGTHS: tl.constexpr,
    HAS_BAND_OFFSETS: tl.constexpr,
    ACCURATE: tl.constexpr,
    PRECISION: tl.constexpr,
    DEAD_ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """One block of queries of one head of a sequence; rows that see no key get zeros."""
    block, item = tile_index(tl.program_id(0), blocks, heads, section)
    q_begin = block * BLOCK_Q
    head = item % heads_q
    b = item // heads_q
    row, q_start, k_start, rows_q, rows_k, offset = sequence_of(
        *(b, batch, len_q, len_k, total_q, total_k, offset),
        *(cu_seqlens_q, cu_seqlens_k, kv_lengths, band_offsets),
        *(IS_PACKED, HAS_KV_LENGTHS, HAS_BAND_OFFSETS),
    )
    q_row = q_begin + tl.arange(0, BLOCK_Q)
    query_base = operand_base(query, row, head, q_start, query_batch, query_head, query_row)
    Q = load_rows(query_base, q_row, rows_q, query_row, DIM, DIM_BLOCK)
    row_lse, row_delta = load_statistics(
        operand_base(lse, row, head, q_start, lse_batch, lse_head, 1),
        operand_base(delta, row, head, q_start, delta_batch, delta_head, 1),
        q_row,
        rows_q,
    )
    dO = load_grad_out(
        operand_base(grad_out, row, head, q_start, grad_out_batch, grad_out_head, grad_out_row),
        *(q_row, row_lse, rows_q, grad_out_row, VALUE_DIM, VALUE_BLOCK, True, DEAD_ROWS),
    )
    head_kv = head // group
    slope = 0.0
    if HAS_ALIBI:
        slope = tl.load(alibi_slopes + b * alibi_batch + head, mask=b < batch, other=0.0)

    q_end = tl.minimum(q_begin + BLOCK_Q, rows_q)
    begin, end = band_kv_range(left, right, offset, q_begin, q_end, rows_k)
    full_begin, full_end = band_full_kv_range(left, right, offset, q_begin, q_end, rows_k)
    begin = begin // BLOCK_KV * BLOCK_KV
    first, last = split_steps(begin, end, full_begin, full_end, BLOCK_KV)
    dQ = tl.zeros([BLOCK_Q, DIM_BLOCK], tl.float32)
    key_base = operand_base(key, row, head_kv, k_start, key_batch, key_head, key_row)
    value_base = operand_base(value, row, head_kv, k_start, value_batch, value_head, value_row)
    bias_base = 0
    if HAS_BIAS:
        bias_base = operand_base(bias, row, head, 0, bias_batch, bias_head, 0)
    for masked in tl.static_range(2):
        dQ = add_keys(
            *(dQ, Q, dO, row_lse, row_delta, q_row),
            begin if masked == 0 else first,
            end - (last - first) if masked == 0 else last,
            *(first, last - first, key_base, key_row, value_base, value_row),
            *(bias_base, bias_query, bias_key, slope, rng_state, b * heads_q + head),
            *(rows_q, rows_k, left, right, offset),
            *(scale, exponent_scale, softcap, threshold, keep_scale),
            *(DIM, DIM_BLOCK, VALUE_DIM, VALUE_BLOCK, FOLD_SCALE, HAS_SOFTCAP, HAS_BIAS),
            *(HAS_ALIBI, HAS_DROPOUT, ACCURATE, PRECISION, masked == 0, BLOCK_KV),
        )

    grad_query = operand_base(
        grad_query, row, head, q_start, grad_query_batch, grad_query_head, grad_query_row
    )
    # What lies behind the last sequence can be longer than every sequence.
    step = tl.where(b == batch, blocks * BLOCK_Q, tl.maximum(rows_q, 1))
    for store_begin in range(q_begin, rows_q, step):
        q_row = store_begin + tl.arange(0, BLOCK_Q)
        store_rows(grad_query, q_row, rows_q, grad_query_row, dQ * scale, DIM, DIM_BLOCK)
