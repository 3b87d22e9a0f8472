"""The kernel of forward.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import SIZES
from .band import band_full_kv_range, band_kv_range
from .philox import dropout_keep
from .schedule import tile_index
from .scores import change_scores, load_bias, visible_keys
from .sequence import sequence_of
from .softmax import online_softmax_finish, online_softmax_update, start_rows
from .tiles import clear_rows_behind, load_rows, load_tile, operand_base, store_rows


@triton.jit
def attend_tiles(
    acc,
    row_max,
    row_sum,
    Q,
    key,
    value,
    key_base,
    value_base,
    bias_base,
    rng_state,
    stream,
    slope,
    row_b,
    h_kv,
    k_start,
    q_row,
    rows_q,
    rows_k,
    key_row,
    value_row,
    bias_query,
    bias_key,
    left,
    right,
    offset,
    scale,
    exponent_scale,
    softcap,
    threshold,
    begin,
    count,
    skip_at,
    skipped,
    MASKED: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    FOLD_SCALE: tl.constexpr,
    ACCURATE: tl.constexpr,
    PRECISION: tl.constexpr,
    USE_DESCRIPTORS: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):
    """acc, row_max and row_sum after `count` tiles of keys from `begin` on.

    From tile `skip_at` on, `skipped` tiles are left out: so one loop serves both edges.
    """
    for index in tl.range(0, count, warp_specialize=WARP_SPECIALIZE):
        tile = index
        if MASKED:
            tile = tl.where(index >= skip_at, index + skipped, index)
        first = begin + tile * BLOCK_KV
        k_row = first + tl.arange(0, BLOCK_KV)
        # What a descriptor brings beyond a length may be NaN: in K the mask of the scores hides it.
        K = load_tile(
            *(key, key_base, row_b, h_kv, k_start, first, rows_k, key_row),
            *(BLOCK_KV, DIM, DIM_BLOCK, MASKED and not USE_DESCRIPTORS, USE_DESCRIPTORS),
        )
        S = tl.dot(Q, tl.trans(K), input_precision=PRECISION)
        if MASKED:
            visible = visible_keys(left, right, offset, q_row, rows_q, k_row, rows_k)
        bias = 0.0
        if HAS_BIAS:
            exists = (q_row < rows_q)[:, None] & (k_row < rows_k)[None, :]
            bias = load_bias(
                bias_base, q_row[:, None], k_row[None, :], bias_query, bias_key, exists
            )
        distance = 0
        if HAS_ALIBI:
            distance = (q_row + offset)[:, None] - k_row[None, :]
        S, _ = change_scores(
            *(S, scale, softcap, bias, slope, distance),
            *(FOLD_SCALE, HAS_SOFTCAP, HAS_BIAS, HAS_ALIBI, True),  # lse is fp32 in any case
        )
        if MASKED:
            S = tl.where(visible, S, float("-inf"))
        P, row_max, row_sum, alpha = online_softmax_update(
            S, row_max, row_sum, exponent_scale, ACCURATE
        )
        if HAS_DROPOUT:
            P = tl.where(dropout_keep(rng_state, stream, q_row, first, threshold, BLOCK_KV), P, 0.0)
        V = load_tile(
            *(value, value_base, row_b, h_kv, k_start, first, rows_k, value_row),
            *(BLOCK_KV, VALUE_DIM, VALUE_BLOCK, MASKED, USE_DESCRIPTORS),
        )
        acc = tl.dot(P.to(V.dtype), V, acc * alpha[:, None], input_precision=PRECISION)
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    query,
    key,
    value,
    out,
    lse,
    bias,
    alibi_slopes,
    sinks,
    kv_lengths,
    cu_seqlens_q,
    cu_seqlens_k,
    band_offsets,
    rng_state,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    out_batch,
    out_head,
    out_row,
    lse_batch,
    lse_head,
    bias_batch,
    bias_head,
    bias_query,
    bias_key,
    alibi_batch,
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
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    IS_PACKED: tl.constexpr,
    HAS_KV_LENGTHS: tl.constexpr,
    HAS_BAND_OFFSETS: tl.constexpr,
    FOLD_SCALE: tl.constexpr,
    ACCURATE: tl.constexpr,
    PRECISION: tl.constexpr,
    PACK_HEADS: tl.constexpr,
    USE_DESCRIPTORS: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):
    block, head = tile_index(tl.program_id(0), blocks, heads, section)
    if PACK_HEADS:
        width = group
        heads_of_row = heads_q // group
    else:
        width = 1
        heads_of_row = heads_q
    b = head // heads_of_row
    h = head % heads_of_row
    row_b, q_start, k_start, rows_q, rows_k, offset = sequence_of(
        *(b, batch, len_q, len_k, total_q, total_k, offset),
        *(cu_seqlens_q, cu_seqlens_k, kv_lengths, band_offsets),
        *(IS_PACKED, HAS_KV_LENGTHS, HAS_BAND_OFFSETS),
    )
    if IS_PACKED:
        behind = b == batch
        if behind:
            for each in tl.range(h * width, h * width + width):
                clear_rows_behind(
                    operand_base(out, row_b, each, q_start, out_batch, out_head, out_row),
                    operand_base(lse, row_b, each, q_start, lse_batch, lse_head, 1),
                    *(rows_q, out_row, block, blocks, BLOCK_Q, VALUE_DIM, VALUE_BLOCK),
                )
            return
    row_begin = block * BLOCK_Q
    if row_begin >= rows_q * width:
        return

    # q_row: [BLOCK_Q], query of each row; h_row: its head, [BLOCK_Q, 1] where heads are packed
    row = row_begin + tl.arange(0, BLOCK_Q)
    if PACK_HEADS:
        h_kv = h
        q_row = row // group
        h_row = (h * group + row % group)[:, None]
        row_heads = h * group + row % group
    else:
        h_kv = h // group
        q_row = row
        h_row = h
        row_heads = h
    q_begin = row_begin // width
    q_end = tl.minimum((row_begin + BLOCK_Q - 1) // width + 1, rows_q)

    # Tiles of keys lie on a grid from `begin`, where a group of random bits starts; those in
    # [full_begin, full_end) need no mask.
    kv_begin, kv_end = band_kv_range(left, right, offset, q_begin, q_end, rows_k)
    first_full, last_full = band_full_kv_range(left, right, offset, q_begin, q_end, rows_k)
    begin = kv_begin // 32 * 32
    tiles = tl.cdiv(kv_end - begin, BLOCK_KV)
    full_begin = tl.cdiv(tl.maximum(first_full - begin, 0), BLOCK_KV)
    full_end = tl.maximum(tl.maximum(last_full - begin, 0) // BLOCK_KV, full_begin)
    full_count = full_end - full_begin

    Q = load_rows(
        operand_base(query, row_b, h_row, q_start, query_batch, query_head, query_row),
        *(q_row, rows_q, query_row, DIM, DIM_BLOCK),
    )
    key_base = key
    value_base = value
    if not USE_DESCRIPTORS:
        key_base = operand_base(key, row_b, h_kv, k_start, key_batch, key_head, key_row)
        value_base = operand_base(value, row_b, h_kv, k_start, value_batch, value_head, value_row)
    bias_base = 0
    if HAS_BIAS:
        bias_base = operand_base(bias, b, h_row, 0, bias_batch, bias_head, 0)
    slope = 0.0
    if HAS_ALIBI:
        slope = tl.load(alibi_slopes + b * alibi_batch + h_row)
    stream = b * heads_q + h_row
    row_max, row_sum = start_rows(sinks, row_heads, unit, HAS_SINKS, BLOCK_Q)
    acc = tl.zeros([BLOCK_Q, VALUE_BLOCK], tl.float32)
    for masked in tl.static_range(2):
        acc, row_max, row_sum = attend_tiles(
            *(acc, row_max, row_sum, Q, key, value, key_base, value_base, bias_base),
            *(rng_state, stream, slope, row_b, h_kv, k_start, q_row, rows_q, rows_k),
            *(key_row, value_row, bias_query, bias_key, left, right, offset),
            *(scale, exponent_scale, softcap, threshold),
            begin if masked == 0 else begin + full_begin * BLOCK_KV,
            tiles - full_count if masked == 0 else full_count,
            *(full_begin, full_count, masked == 0),
            *(BLOCK_KV, DIM, DIM_BLOCK, VALUE_DIM, VALUE_BLOCK, HAS_BIAS, HAS_ALIBI),
            *(HAS_SOFTCAP, HAS_DROPOUT, FOLD_SCALE, ACCURATE, PRECISION),
            *(USE_DESCRIPTORS, WARP_SPECIALIZE),
        )

    inverse, row_lse = online_softmax_finish(row_max, row_sum, unit)
    if HAS_DROPOUT:
        inverse = inverse * keep_scale
    store_rows(
        operand_base(out, row_b, h_row, q_start, out_batch, out_head, out_row),
        *(q_row, rows_q, out_row, acc * inverse[:, None], VALUE_DIM, VALUE_BLOCK),
    )
    lse_rows = operand_base(lse, row_b, row_heads, q_start, lse_batch, lse_head, 1) + q_row
    tl.store(lse_rows, row_lse, mask=q_row < rows_q)
