"""The weights of chosen queries; see maps.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import SIZES
from .maps_tile import chosen_head, log_weights, masked_scores, weights_of
from .sequence import sequence_of
from .tiles import load_rows, operand_base


@triton.jit(do_not_specialize=(*SIZES, "chosen", "row_count", "row_blocks", "key_blocks"))
def maps_weights_kernel(
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
    chosen_rows,
    row_sequences,
    weights,
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
    row_count,
    row_blocks,
    key_blocks,
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
    """A tile [rows, keys] of one head. Packed rows may be of several sequences: `row_sequences`.

    Keys are numbered by their rows in the tensor, so a packed row's band is moved by where its
    sequence begins. Rows that do not exist get zeros.
    """
    key_block = tl.program_id(0) % key_blocks
    item = tl.program_id(0) // key_blocks
    row_block = item % row_blocks
    n = item // row_blocks % chosen
    h = chosen_head(chosen_heads, n, heads_q, HAS_HEADS)
    place = row_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row = tl.load(chosen_rows + place, mask=place < row_count, other=-1)
    b = item // row_blocks // chosen
    keys = len_k
    if IS_PACKED:
        b = tl.load(row_sequences + place, mask=place < row_count, other=batch)
        keys = total_k
    row_b, q_start, k_start, rows_q, rows_k, offset = sequence_of(
        *(b, batch, len_q, len_k, total_q, total_k, offset),
        *(cu_seqlens_q, cu_seqlens_k, kv_lengths, band_offsets),
        *(IS_PACKED, HAS_KV_LENGTHS, HAS_BAND_OFFSETS),
    )
    q_row = row - q_start
    exists = (row >= 0) & (q_row < rows_q)
    k_row = key_block * BLOCK_KV + tl.arange(0, BLOCK_KV)

    row = tl.where(exists, row, 0)
    Q = load_rows(
        operand_base(query, row_b, h, 0, query_batch, query_head, query_row),
        *(row, tl.where(exists, row + 1, 0), query_row, DIM, DIM_BLOCK),
    )
    keys_end = keys
    if not IS_PACKED:
        keys_end = rows_k
    K = load_rows(
        operand_base(key, row_b, h // group, 0, key_batch, key_head, key_row),
        *(k_row, keys_end, key_row, DIM, DIM_BLOCK),
    )
    bias_base = 0
    if HAS_BIAS:
        bias_base = operand_base(bias, row_b, h, 0, bias_batch, bias_head, 0)
    slope = 0.0
    if HAS_ALIBI:
        slope = tl.load(alibi_slopes + b * alibi_batch + h, mask=b < batch, other=0.0)
    lse_base = operand_base(lse, row_b, h, 0, lse_batch, lse_head, 1)
    row_lse = tl.load(lse_base + row, mask=exists, other=float("-inf"))
    S = masked_scores(
        *(Q, K, tl.where(exists, q_row, 0), k_row, tl.where(exists, rows_q, 0)),
        *(k_start, k_start + rows_k, bias_base, bias_query, bias_key, slope),
        *(left, right, k_start + offset, scale, softcap),
        *(HAS_BIAS, HAS_ALIBI, HAS_SOFTCAP, FOLD_SCALE, PRECISION),
    )
    P = weights_of(log_weights(S, row_lse, unit))
    result = (tl.cast(row_b, tl.int64) * chosen + n) * row_count + place
    written = (place < row_count)[:, None] & (k_row < keys)[None, :]
    tl.store(weights + result[:, None] * keys + k_row[None, :], P, mask=written)
