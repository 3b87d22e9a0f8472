"""Gradient of the values of additive attention: dV = P^T dO."""

from __future__ import annotations

import triton
import triton.language as tl

from .additive_tile import ADDITIVE_SIZES
from .band import band_q_range
from .sequence import key_length
from .tiles import load_columns, operand_base, store_columns


@triton.jit(do_not_specialize=ADDITIVE_SIZES)
def additive_backward_value_kernel(
    weights,
    grad_out,
    grad_out_batch,
    grad_out_head,
    grad_out_row,
    lse,
    lse_batch,
    lse_head,
    grad_value,
    grad_value_batch,
    grad_value_head,
    grad_value_row,
    key_lengths,
    heads,
    len_k,
    left,
    right,
    offset,
    first_item,
    first_query,
    rows,
    blocks,
    groups,
    VALUE_DIM: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    ADD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
):
    """VALUE_BLOCK columns of BLOCK_KV rows; weights: as additive_backward_tile.py writes them."""
    group, program = tl.program_id(0) % groups, tl.program_id(0) // groups
    item = program // blocks
    b = (first_item + item) // heads
    head = (first_item + item) % heads
    rows_k = key_length(key_lengths, b, len_k, HAS_LENGTHS)
    k_begin = program % blocks * BLOCK_KV
    k_row = k_begin + tl.arange(0, BLOCK_KV)
    columns = group * VALUE_BLOCK + tl.arange(0, VALUE_BLOCK)
    P_base = weights + tl.cast(item, tl.int64) * rows * len_k
    lse_base = operand_base(lse, b, head, first_query, lse_batch, lse_head, 1)
    dO_base = operand_base(
        grad_out, b, head, first_query, grad_out_batch, grad_out_head, grad_out_row
    )
    dV = tl.zeros([BLOCK_KV, VALUE_BLOCK], tl.float32)
    k_end = tl.minimum(k_begin + BLOCK_KV, rows_k)
    begin, end = band_q_range(left, right, offset, k_begin, k_end, first_query + rows)
    for q_begin in range(tl.maximum(begin - first_query, 0), end - first_query, BLOCK_Q):
        row = q_begin + tl.arange(0, BLOCK_Q)
        row_lse = tl.load(lse_base + row, mask=row < rows, other=float("-inf"))
        # grad_out of a row that sees nothing may be NaN.
        alive = row_lse != float("-inf")
        P = load_columns(P_base, row, alive, len_k, k_row, k_end)
        dO = load_columns(dO_base, row, alive, grad_out_row, columns, VALUE_DIM)
        dV = tl.dot(tl.trans(P), dO, dV, input_precision=PRECISION)

    grad_base = operand_base(
        grad_value, b, head, 0, grad_value_batch, grad_value_head, grad_value_row
    )
    written = k_row < len_k
    if ADD:
        dV += load_columns(grad_base, k_row, written, grad_value_row, columns, VALUE_DIM)
    store_columns(grad_base, k_row, written, grad_value_row, columns, VALUE_DIM, dV)
