"""One tile of the gradient of a bias; see backward_bias.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import SIZES
from .backward_tile import load_grad_out, load_statistics, score_gradients
from .band import band_kv_range
from .philox import dropout_keep
from .scores import load_bias, visible_keys
from .sequence import sequence_of
from .tiles import load_rows, operand_base

_SIZES = (
    *SIZES,
    *("tiles", "terms", "per_split"),
    *("tiles_b", "tiles_h", "tiles_q", "tiles_k", "sum_b", "sum_h", "sum_q", "sum_k"),
)


@triton.jit
def split_index(index, n_b, n_h, n_q, n_k):
    """A number as (batch, head, block of queries, block of keys), the last one fastest."""
    k = index % n_k
    index = index // n_k
    q = index % n_q
    index = index // n_q
    return index // n_h, index % n_h, q, k


@triton.jit(do_not_specialize=_SIZES)
def backward_bias_kernel(
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
    grad_bias,
    grad_bias_split,
    grad_bias_batch,
    grad_bias_head,
    grad_bias_query,
    grad_bias_key,
    bias,
    bias_batch,
    bias_head,
    bias_query,
    bias_key,
    alibi_slopes,
    alibi_batch,
    kv_lengths,
    band_offsets,
    rng_state,
    batch,
    heads_q,
    group,
    len_q,
    len_k,
    left,
    right,
    offset,
    scale,
    exponent_scale,
    softcap,
    threshold,
    keep_scale,
    tiles_b,
    tiles_h,
    tiles_q,
    tiles_k,
    sum_b,
    sum_h,
    sum_q,
    sum_k,
    tiles,
    terms,
    per_split,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    FOLD_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    HAS_KV_LENGTHS: tl.constexpr,
    HAS_BAND_OFFSETS: tl.constexpr,
    ACCURATE: tl.constexpr,
    PRECISION: tl.constexpr,
    SUM_B: tl.constexpr,
    SUM_H: tl.constexpr,
    SUM_Q: tl.constexpr,
    SUM_K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """The terms [split * per_split, ...) of one tile; SUM_x: the bias is broadcast in x."""
    program = tl.program_id(0)
    split = program // tiles
    own_b, own_h, own_q, own_k = split_index(
        program % tiles,
        1 if SUM_B else tiles_b,
        1 if SUM_H else tiles_h,
        1 if SUM_Q else tiles_q,
        1 if SUM_K else tiles_k,
    )
    total = tl.zeros([BLOCK_Q, BLOCK_KV], tl.float32)
    for term in range(split * per_split, tl.minimum((split + 1) * per_split, terms)):
        b, head, q_block, k_block = split_index(term, sum_b, sum_h, sum_q, sum_k)
        b += own_b
        head += own_h
        q_begin = (q_block + own_q) * BLOCK_Q
        k_begin = (k_block + own_k) * BLOCK_KV
        row, _, _, rows_q, rows_k, band_offset = sequence_of(
            *(b, batch, len_q, len_k, 0, 0, offset, None, None, kv_lengths, band_offsets),
            *(False, HAS_KV_LENGTHS, HAS_BAND_OFFSETS),
        )
        q_end = tl.minimum(q_begin + BLOCK_Q, rows_q)
        begin, end = band_kv_range(left, right, band_offset, q_begin, q_end, rows_k)
        if tl.maximum(begin, k_begin) < tl.minimum(end, k_begin + BLOCK_KV):
            q_row = q_begin + tl.arange(0, BLOCK_Q)
            k_row = k_begin + tl.arange(0, BLOCK_KV)
            head_kv = head // group
            query_base = operand_base(query, row, head, 0, query_batch, query_head, query_row)
            key_base = operand_base(key, row, head_kv, 0, key_batch, key_head, key_row)
            value_base = operand_base(value, row, head_kv, 0, value_batch, value_head, value_row)
            Q = load_rows(query_base, q_row, rows_q, query_row, DIM, DIM_BLOCK)
            K = load_rows(key_base, k_row, rows_k, key_row, DIM, DIM_BLOCK)
            V = load_rows(value_base, k_row, rows_k, value_row, VALUE_DIM, VALUE_BLOCK)
            row_lse, row_delta = load_statistics(
                operand_base(lse, row, head, 0, lse_batch, lse_head, 1),
                operand_base(delta, row, head, 0, delta_batch, delta_head, 1),
                q_row,
                rows_q,
            )
            dO = load_grad_out(
                operand_base(grad_out, row, head, 0, grad_out_batch, grad_out_head, grad_out_row),
                *(q_row, row_lse, rows_q, grad_out_row, VALUE_DIM, VALUE_BLOCK, True, True),
            )
            S = tl.dot(Q, tl.trans(K), input_precision=PRECISION)
            dP = tl.dot(dO, tl.trans(V), input_precision=PRECISION)
            visible = visible_keys(left, right, band_offset, q_row, rows_q, k_row, rows_k)
            bias_tile = load_bias(
                operand_base(bias, row, head, 0, bias_batch, bias_head, 0),
                *(q_row[:, None], k_row[None, :], bias_query, bias_key, visible),
            )
            slope = 0.0
            if HAS_ALIBI:
                slope = tl.load(alibi_slopes + b * alibi_batch + head)
            keep = 0
            if HAS_DROPOUT:
                stream = b * heads_q + head
                keep = dropout_keep(rng_state, stream, q_row, k_begin, threshold, BLOCK_KV)
            P, dS, gradient = score_gradients(
                *(S, dP, row_lse[:, None], row_delta[:, None], visible, keep, bias_tile, slope),
                q_row[:, None] + band_offset - k_row[None, :],
                *(scale, exponent_scale, softcap, keep_scale, True, FOLD_SCALE, HAS_SOFTCAP),
                *(True, HAS_ALIBI, HAS_DROPOUT, ACCURATE),
            )
            total += dS

    q_row = own_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    k_row = own_k * BLOCK_KV + tl.arange(0, BLOCK_KV)
    target = operand_base(
        grad_bias, own_b, own_h, split, grad_bias_batch, grad_bias_head, grad_bias_split
    )
    rows = tl.cast(q_row, tl.int64) * grad_bias_query
    columns = tl.cast(k_row, tl.int64) * grad_bias_key
    element = grad_bias.dtype.element_ty
    if SUM_Q and SUM_K:
        tl.store(target, tl.sum(tl.sum(total, axis=1), axis=0).to(element))
    elif SUM_Q:
        tl.store(target + columns, tl.sum(total, axis=0).to(element), mask=k_row < len_k)
    elif SUM_K:
        tl.store(target + rows, tl.sum(total, axis=1).to(element), mask=q_row < len_q)
    else:
        exists = (q_row < len_q)[:, None] & (k_row < len_k)[None, :]
        tl.store(target + rows[:, None] + columns[None, :], total.to(element), mask=exists)
