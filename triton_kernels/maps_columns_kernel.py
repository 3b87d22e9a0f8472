"""What the keys of one block receive from all queries; see maps.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import SIZES
from .band import band_q_range
from .maps_tile import chosen_head, log_weights, masked_scores, weights_of
from .schedule import tile_index
from .sequence import sequence_of
from .tiles import load_rows, operand_base


@triton.jit(do_not_specialize=(*SIZES, "chosen", "result_keys"))
def maps_columns_kernel(
    query,
    query_batch,
    query_head,
    query_row,
    key,
    key_batch,
    key_head,
    key_row,
    lse,
    lse_batch,
    lse_head,
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
    chosen_heads,
    column_mass,
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
    unit,
    softcap,
    chosen,
    result_keys,
    blocks,
    heads,
    section,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_HEADS: tl.constexpr,
    IS_PACKED: tl.constexpr,
    HAS_KV_LENGTHS: tl.constexpr,
    HAS_BAND_OFFSETS: tl.constexpr,
    FOLD_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """result_keys: keys of one head in the result. Those that do not exist get 0."""
    block, item = tile_index(tl.program_id(0), blocks, heads, section)
    # tile_index begins with the last block, which sees the fewest queries under a causal mask.
    block = blocks - 1 - block
    b = item // chosen
    n = item % chosen
    h = chosen_head(chosen_heads, n, heads_q, HAS_HEADS)
    row_b, q_start, k_start, rows_q, rows_k, offset = sequence_of(
        *(b, batch, len_q, len_k, total_q, total_k, offset),
        *(cu_seqlens_q, cu_seqlens_k, kv_lengths, band_offsets),
        *(IS_PACKED, HAS_KV_LENGTHS, HAS_BAND_OFFSETS),
    )
    query_base = operand_base(query, row_b, h, q_start, query_batch, query_head, query_row)
    key_base = operand_base(key, row_b, h // group, k_start, key_batch, key_head, key_row)
    lse_base = operand_base(lse, row_b, h, q_start, lse_batch, lse_head, 1)
    bias_base = 0
    if HAS_BIAS:
        bias_base = operand_base(bias, b, h, 0, bias_batch, bias_head, 0)
    slope = 0.0
    if HAS_ALIBI:
        slope = tl.load(alibi_slopes + b * alibi_batch + h, mask=b < batch, other=0.0)
    # Rows of the result that are this sequence's to write, those behind its length too.
    stored = len_k
    if IS_PACKED:
        stored = tl.where(b == batch, total_k - k_start, rows_k)
    result = (tl.cast(row_b, tl.int64) * chosen + n) * result_keys + k_start

    for k_begin in tl.range(block * BLOCK_KV, stored, blocks * BLOCK_KV):
        k_row = k_begin + tl.arange(0, BLOCK_KV)
        K = load_rows(key_base, k_row, rows_k, key_row, DIM, DIM_BLOCK)
        mass = tl.zeros([BLOCK_KV], tl.float32)
        k_end = tl.minimum(k_begin + BLOCK_KV, rows_k)
        begin, end = band_q_range(left, right, offset, k_begin, k_end, rows_q)
        for first in tl.range(begin, end, BLOCK_Q):
            q_row = first + tl.arange(0, BLOCK_Q)
            Q = load_rows(query_base, q_row, rows_q, query_row, DIM, DIM_BLOCK)
            row_lse = tl.load(lse_base + q_row, mask=q_row < rows_q, other=float("-inf"))
            S = masked_scores(
                *(Q, K, q_row, k_row, rows_q, 0, rows_k, bias_base, bias_query, bias_key, slope),
                *(left, right, offset, scale, softcap),
                *(HAS_BIAS, HAS_ALIBI, HAS_SOFTCAP, FOLD_SCALE, PRECISION),
            )
            mass += tl.sum(weights_of(log_weights(S, row_lse, unit)), 0)
        tl.store(column_mass + result + k_row, mass, mask=k_row < stored)
