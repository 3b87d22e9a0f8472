"""dK and dV of one block of keys, and in the fused form what these keys add to dQ.

    for each query head of the group, for each step of queries that see the block:
        S^T = K Q^T    dP^T = V dO^T    P^T, dS^T
        dV += P^T dO   dK += dS^T Q     fused: dQ += dS K

The sums of dK and dV are one program's, in a fixed order. Those of dQ are atomic additions of many
programs in fp32: their order, and with it the last bits, vary from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import SIZES
from .backward_key_steps import add_queries
from .backward_tile import split_steps
from .band import band_full_q_range, band_q_range
from .schedule import tile_index
from .sequence import sequence_of
from .tiles import load_rows, operand_base, store_rows


@triton.jit(do_not_specialize=SIZES)
def backward_key_kernel(
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
    grad_key,
    grad_key_batch,
    grad_key_head,
    grad_key_row,
    grad_value,
    grad_value_batch,
    grad_value_head,
    grad_value_row,
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
    heads_kv,
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
    FUSED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """One block of keys of one key/value head of a sequence; grad_query counts if FUSED.

    Keys that do not exist (beyond kv_lengths, behind the last sequence) get zeros.
    """
    block, item = tile_index(tl.program_id(0), blocks, heads, section)
    # tile_index begins with the last block, which sees the fewest queries under a causal mask.
    k_begin = (blocks - 1 - block) * BLOCK_KV
    head_kv = item % heads_kv
    b = item // heads_kv
    row, q_start, k_start, rows_q, rows_k, offset = sequence_of(
        *(b, batch, len_q, len_k, total_q, total_k, offset),
        *(cu_seqlens_q, cu_seqlens_k, kv_lengths, band_offsets),
        *(IS_PACKED, HAS_KV_LENGTHS, HAS_BAND_OFFSETS),
    )
    k_row = k_begin + tl.arange(0, BLOCK_KV)
    key_base = operand_base(key, row, head_kv, k_start, key_batch, key_head, key_row)
    value_base = operand_base(value, row, head_kv, k_start, value_batch, value_head, value_row)
    K = load_rows(key_base, k_row, rows_k, key_row, DIM, DIM_BLOCK)
    V = load_rows(value_base, k_row, rows_k, value_row, VALUE_DIM, VALUE_BLOCK)
    dK = tl.zeros([BLOCK_KV, DIM_BLOCK], tl.float32)
    dV = tl.zeros([BLOCK_KV, VALUE_BLOCK], tl.float32)

    k_end = tl.minimum(k_begin + BLOCK_KV, rows_k)
    begin, end = band_q_range(left, right, offset, k_begin, k_end, rows_q)
    full_begin, full_end = band_full_q_range(left, right, offset, k_begin, k_end, rows_q)
    # A block with keys that do not exist needs the mask everywhere: 2^(0 - lse) may overflow.
    full_end = tl.where(k_begin + BLOCK_KV <= rows_k, full_end, 0)
    begin = begin // BLOCK_Q * BLOCK_Q
    first, last = split_steps(begin, end, full_begin, full_end, BLOCK_Q)
    query_base = operand_base(query, row, 0, q_start, query_batch, query_head, query_row)
    grad_out_base = operand_base(
        *(grad_out, row, 0, q_start, grad_out_batch, grad_out_head, grad_out_row)
    )
    grad_query_base = 0
    if FUSED:
        grad_query_base = operand_base(
            *(grad_query, row, 0, q_start, grad_query_batch, grad_query_head, grad_query_row)
        )
    lse_base = operand_base(lse, row, 0, q_start, lse_batch, lse_head, 1)
    delta_base = operand_base(delta, row, 0, q_start, delta_batch, delta_head, 1)
    bias_base = 0
    if HAS_BIAS:
        bias_base = operand_base(bias, row, 0, 0, bias_batch, bias_head, 0)
    slopes = 0
    if HAS_ALIBI:
        slopes = alibi_slopes + b * alibi_batch
    for masked in tl.static_range(2):
        span = end - begin - (last - first) if masked == 0 else last - first
        dK, dV = add_queries(
            *(dK, dV, K, V, k_row, k_begin, head_kv * group, group),
            begin if masked == 0 else first,
            tl.cdiv(span, BLOCK_Q),
            *(first, last - first, query_base, query_head, query_row),
            *(grad_out_base, grad_out_head, grad_out_row),
            *(lse_base, lse_head, delta_base, delta_head),
            *(grad_query_base, grad_query_head, grad_query_row),
            *(bias_base, bias_head, bias_query, bias_key, slopes, rng_state, b * heads_q),
            *(rows_q, rows_k, left, right, offset),
            *(scale, exponent_scale, softcap, threshold, keep_scale),
            *(DIM, DIM_BLOCK, VALUE_DIM, VALUE_BLOCK, FOLD_SCALE, HAS_SOFTCAP, HAS_BIAS),
            *(HAS_ALIBI, HAS_DROPOUT, ACCURATE, PRECISION, DEAD_ROWS, FUSED, masked == 0),
            *(BLOCK_Q, BLOCK_KV),
        )

    # Rows of the tensors in this sequence, those behind its length too.
    stored = len_k
    if IS_PACKED:
        stored = tl.where(b == batch, total_k - k_start, rows_k)
    grad_key = operand_base(
        grad_key, row, head_kv, k_start, grad_key_batch, grad_key_head, grad_key_row
    )
    grad_value = operand_base(
        grad_value, row, head_kv, k_start, grad_value_batch, grad_value_head, grad_value_row
    )
    # What lies behind the last sequence can be longer than every sequence.
    step = tl.where(b == batch, blocks * BLOCK_KV, tl.maximum(stored, 1))
    for store_begin in range(k_begin, stored, step):
        k_row = store_begin + tl.arange(0, BLOCK_KV)
        store_rows(grad_key, k_row, stored, grad_key_row, dK * scale, DIM, DIM_BLOCK)
        store_rows(grad_value, k_row, stored, grad_value_row, dV, VALUE_DIM, VALUE_BLOCK)
