"""Entropy, argmax and the highest weights of one block of queries; see maps.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import SIZES
from .band import band_kv_range
from .maps_tile import chosen_head, log_weights, masked_scores, weights_of
from .schedule import tile_index
from .sequence import sequence_of
from .tiles import load_rows, operand_base

_NO_KEY = tl.constexpr(-(1 << 30))
_BEHIND = tl.constexpr(1 << 30)


@triton.jit
def highest(S, keys):
    """The highest score of each row and the lowest key that has it. keys: as S, or [1, keys]."""
    top = tl.max(S, 1)
    return top, tl.min(tl.where(top[:, None] == S, keys, _BEHIND), 1)


@triton.jit
def insert_keys(scores, keys, S, k_row):
    """The lists [queries, slots] with a tile's keys: the highest of both, in no order.

    Of equal scores the lower key stays. Empty slots have score -inf and keys below 0, which differ.
    A round takes the best of what is left from each row; few tiles take more than a few.
    """
    top, key = highest(S, k_row[None, :])
    least = tl.min(scores, 1)
    while tl.max((top > least).to(tl.int32), 0) > 0:
        better = (top > least)[:, None]
        leaving = tl.max(tl.where(scores == least[:, None], keys, _NO_KEY), 1)
        slot = better & (keys == leaving[:, None])
        scores = tl.where(slot, top[:, None], scores)
        keys = tl.where(slot, key[:, None], keys)
        S = tl.where(better & (k_row[None, :] == key[:, None]), float("-inf"), S)
        top, key = highest(S, k_row[None, :])
        least = tl.min(scores, 1)
    return scores, keys


@triton.jit(do_not_specialize=(*SIZES, "chosen", "result_rows"))
def maps_rows_kernel(
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
    entropy,
    argmax,
    top_weights,
    top_indices,
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
    result_rows,
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
    WANTS_ENTROPY: tl.constexpr,
    WANTS_ARGMAX: tl.constexpr,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """result_rows: rows of one head in the results. SLOTS: of a list, a power of two >= TOP_K."""
    block, item = tile_index(tl.program_id(0), blocks, heads, section)
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
    result = (tl.cast(row_b, tl.int64) * chosen + n) * result_rows + q_start

    # Once, but for the rows behind the last sequence, of which there may be many.
    for q_begin in tl.range(block * BLOCK_Q, rows_q, blocks * BLOCK_Q):
        q_row = q_begin + tl.arange(0, BLOCK_Q)
        Q = load_rows(query_base, q_row, rows_q, query_row, DIM, DIM_BLOCK)
        row_lse = tl.load(lse_base + q_row, mask=q_row < rows_q, other=float("-inf"))
        row_entropy = tl.zeros([BLOCK_Q], tl.float32)
        best = tl.full([BLOCK_Q], float("-inf"), tl.float32)
        best_key = tl.full([BLOCK_Q], -1, tl.int32)
        scores = tl.full([BLOCK_Q, SLOTS], float("-inf"), tl.float32)
        keys = tl.zeros([BLOCK_Q, SLOTS], tl.int32) - 1 - tl.arange(0, SLOTS)[None, :]
        q_end = tl.minimum(q_begin + BLOCK_Q, rows_q)
        begin, end = band_kv_range(left, right, offset, q_begin, q_end, rows_k)
        for first in tl.range(begin, end, BLOCK_KV):
            k_row = first + tl.arange(0, BLOCK_KV)
            K = load_rows(key_base, k_row, rows_k, key_row, DIM, DIM_BLOCK)
            S = masked_scores(
                *(Q, K, q_row, k_row, rows_q, 0, rows_k, bias_base, bias_query, bias_key, slope),
                *(left, right, offset, scale, softcap),
                *(HAS_BIAS, HAS_ALIBI, HAS_SOFTCAP, FOLD_SCALE, PRECISION),
            )
            if WANTS_ENTROPY:
                log_weight = log_weights(S, row_lse, unit)
                finite = tl.where(log_weight == float("-inf"), 0.0, log_weight)
                row_entropy -= tl.sum(weights_of(log_weight) * finite, 1)
            if WANTS_ARGMAX:
                top, top_key = highest(S, k_row[None, :])
                best_key = tl.where(top > best, top_key, best_key)
                best = tl.maximum(top, best)
            if TOP_K > 0:
                scores, keys = insert_keys(scores, keys, S, k_row)

        exists = q_row < rows_q
        alive = row_lse != float("-inf")
        if WANTS_ENTROPY:
            tl.store(entropy + result + q_row, row_entropy, mask=exists)
        if WANTS_ARGMAX:
            found = tl.where(alive & (best_key >= 0), best_key + k_start, -1)
            tl.store(argmax + result + q_row, found.to(tl.int64), mask=exists)
        if TOP_K > 0:
            for place in tl.range(0, TOP_K):
                top, first_key = highest(scores, keys)
                filled = alive & (top != float("-inf"))
                weight = weights_of(log_weights(top[:, None], row_lse, unit))
                at = (result + q_row) * TOP_K + place
                tl.store(top_weights + at, tl.sum(weight, 1), mask=exists)
                found = tl.where(filled, first_key + k_start, -1)
                tl.store(top_indices + at, found.to(tl.int64), mask=exists)
                scores = tl.where(keys == first_key[:, None], float("-inf"), scores)
