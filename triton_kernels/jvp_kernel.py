"""out, lse and their tangents of one block of query rows, in one pass over the keys; see jvp.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import SIZES
from .backward_tile import split_steps
from .band import band_full_kv_range, band_kv_range
from .jvp_steps import move_with_keys
from .schedule import tile_index
from .sequence import sequence_of
from .softmax import online_softmax_finish, start_rows
from .tiles import load_rows, operand_base, store_rows


@triton.jit(do_not_specialize=SIZES)
def jvp_kernel(
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
    query_tangent,
    query_tangent_batch,
    query_tangent_head,
    query_tangent_row,
    key_tangent,
    key_tangent_batch,
    key_tangent_head,
    key_tangent_row,
    value_tangent,
    value_tangent_batch,
    value_tangent_head,
    value_tangent_row,
    out,
    out_batch,
    out_head,
    out_row,
    out_tangent,
    out_tangent_batch,
    out_tangent_head,
    out_tangent_row,
    lse,
    lse_batch,
    lse_head,
    lse_tangent,
    lse_tangent_batch,
    lse_tangent_head,
    bias,
    bias_batch,
    bias_head,
    bias_query,
    bias_key,
    bias_tangent,
    bias_tangent_batch,
    bias_tangent_head,
    bias_tangent_query,
    bias_tangent_key,
    alibi_slopes,
    alibi_batch,
    sinks,
    sinks_tangent,
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
    unit,
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
    HAS_SINKS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    IS_PACKED: tl.constexpr,
    HAS_KV_LENGTHS: tl.constexpr,
    HAS_BAND_OFFSETS: tl.constexpr,
    MOVES_QUERY: tl.constexpr,
    MOVES_KEY: tl.constexpr,
    MOVES_VALUE: tl.constexpr,
    MOVES_BIAS: tl.constexpr,
    MOVES_SINKS: tl.constexpr,
    ACCURATE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """MOVES_x: there is a tangent of x; without it x stands still."""
    block, item = tile_index(tl.program_id(0), blocks, heads, section)
    q_begin = block * BLOCK_Q
    head = item % heads_q
    b = item // heads_q
    row, q_start, k_start, rows_q, rows_k, offset = sequence_of(
        *(b, batch, len_q, len_k, total_q, total_k, offset),
        *(cu_seqlens_q, cu_seqlens_k, kv_lengths, band_offsets),
        *(IS_PACKED, HAS_KV_LENGTHS, HAS_BAND_OFFSETS),
    )
    head_kv = head // group
    q_row = q_begin + tl.arange(0, BLOCK_Q)
    query_base = operand_base(query, row, head, q_start, query_batch, query_head, query_row)
    Q = load_rows(query_base, q_row, rows_q, query_row, DIM, DIM_BLOCK)
    key_base = operand_base(key, row, head_kv, k_start, key_batch, key_head, key_row)
    value_base = operand_base(value, row, head_kv, k_start, value_batch, value_head, value_row)
    dQ = Q
    if MOVES_QUERY:
        dQ_base = operand_base(
            *(query_tangent, row, head, q_start),
            *(query_tangent_batch, query_tangent_head, query_tangent_row),
        )
        dQ = load_rows(dQ_base, q_row, rows_q, query_tangent_row, DIM, DIM_BLOCK)
    dK_base = 0
    if MOVES_KEY:
        dK_base = operand_base(
            *(key_tangent, row, head_kv, k_start),
            *(key_tangent_batch, key_tangent_head, key_tangent_row),
        )
    dV_base = 0
    if MOVES_VALUE:
        dV_base = operand_base(
            *(value_tangent, row, head_kv, k_start),
            *(value_tangent_batch, value_tangent_head, value_tangent_row),
        )
    bias_base = 0
    if HAS_BIAS:
        bias_base = operand_base(bias, row, head, 0, bias_batch, bias_head, 0)
    dB_base = 0
    if MOVES_BIAS:
        dB_base = operand_base(bias_tangent, row, head, 0, bias_tangent_batch, bias_tangent_head, 0)
    slope = 0.0
    if HAS_ALIBI:
        slope = tl.load(alibi_slopes + b * alibi_batch + head, mask=b < batch, other=0.0)

    row_max, row_sum = start_rows(sinks, head, unit, HAS_SINKS, BLOCK_Q)
    row_moved = tl.zeros([BLOCK_Q], tl.float32)
    if MOVES_SINKS:
        # The sum holds nothing but the sink's weight, which is 1, or 0 if it is -inf.
        row_moved = tl.where(row_sum != 0.0, tl.load(sinks_tangent + head), 0.0)
    sums = tl.zeros([BLOCK_Q, VALUE_BLOCK], tl.float32)
    moved_sums = tl.zeros([BLOCK_Q, VALUE_BLOCK], tl.float32)

    q_end = tl.minimum(q_begin + BLOCK_Q, rows_q)
    begin, end = band_kv_range(left, right, offset, q_begin, q_end, rows_k)
    full_begin, full_end = band_full_kv_range(left, right, offset, q_begin, q_end, rows_k)
    begin = begin // BLOCK_KV * BLOCK_KV
    first, last = split_steps(begin, end, full_begin, full_end, BLOCK_KV)
    for masked in tl.static_range(2):
        sums, moved_sums, row_max, row_sum, row_moved = move_with_keys(
            *(sums, moved_sums, row_max, row_sum, row_moved, Q, dQ, q_row),
            begin if masked == 0 else first,
            end - (last - first) if masked == 0 else last,
            *(first, last - first, key_base, key_row, value_base, value_row),
            *(dK_base, key_tangent_row, dV_base, value_tangent_row),
            *(bias_base, bias_query, bias_key, dB_base, bias_tangent_query, bias_tangent_key),
            *(slope, rng_state, b * heads_q + head, rows_q, rows_k, left, right, offset),
            *(scale, exponent_scale, softcap, threshold, keep_scale),
            *(DIM, DIM_BLOCK, VALUE_DIM, VALUE_BLOCK, FOLD_SCALE, HAS_SOFTCAP, HAS_BIAS),
            *(HAS_ALIBI, HAS_DROPOUT, MOVES_QUERY, MOVES_KEY, MOVES_VALUE, MOVES_BIAS),
            *(ACCURATE, PRECISION, masked == 0, BLOCK_KV),
        )

    inverse, row_lse = online_softmax_finish(row_max, row_sum, unit)
    row_moved = row_moved * inverse
    sums = sums * inverse[:, None]
    moved_sums = moved_sums * inverse[:, None] - row_moved[:, None] * sums
    out = operand_base(out, row, head, q_start, out_batch, out_head, out_row)
    out_tangent = operand_base(
        out_tangent, row, head, q_start, out_tangent_batch, out_tangent_head, out_tangent_row
    )
    lse = operand_base(lse, row, head, q_start, lse_batch, lse_head, 1)
    lse_tangent = operand_base(
        lse_tangent, row, head, q_start, lse_tangent_batch, lse_tangent_head, 1
    )
    if IS_PACKED:
        # Nobody's rows: their sink is no key either.
        row_lse = tl.where(b == batch, float("-inf"), row_lse)
        row_moved = tl.where(b == batch, 0.0, row_moved)
    # What lies behind the last sequence can be longer than every sequence.
    step = tl.where(b == batch, blocks * BLOCK_Q, tl.maximum(rows_q, 1))
    for store_begin in range(q_begin, rows_q, step):
        q_row = store_begin + tl.arange(0, BLOCK_Q)
        store_rows(out, q_row, rows_q, out_row, sums, VALUE_DIM, VALUE_BLOCK)
        store_rows(out_tangent, q_row, rows_q, out_tangent_row, moved_sums, VALUE_DIM, VALUE_BLOCK)
        tl.store(lse + q_row, row_lse, mask=q_row < rows_q)
        tl.store(lse_tangent + q_row, row_moved, mask=q_row < rows_q)
