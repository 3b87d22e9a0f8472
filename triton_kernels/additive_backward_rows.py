"""Gradients of the projections and of v, from dS.

    dq_i = v * sum_j dS_ij (1 - t_ij^2)    dk_j = v * sum_i dS_ij (1 - t_ij^2)
    dv = sum_ij dS_ij t_ij

with t_ij = tanh(q_i + k_j). Queries and keys are alike in that, so one kernel serves both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .additive_tile import ADDITIVE_SIZES, additive_tanh
from .band import band_kv_range
from .sequence import key_length
from .tiles import load_columns, operand_base, store_columns


@triton.jit(do_not_specialize=ADDITIVE_SIZES)
def additive_backward_rows_kernel(
    own,
    own_batch,
    own_head,
    own_row,
    other,
    other_batch,
    other_head,
    other_row,
    v,
    grad_scores,
    scores_item,
    scores_own,
    scores_other,
    grad_own,
    grad_own_batch,
    grad_own_head,
    grad_own_row,
    grad_v,
    key_lengths,
    heads,
    len_other,
    left,
    right,
    offset,
    first_item,
    first_own,
    first_other,
    rows_own,
    blocks,
    own_blocks,
    groups,
    DIM: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    OWN_IS_QUERY: tl.constexpr,
    ADD: tl.constexpr,
    ACCURATE: tl.constexpr,
    NATIVE_TANH: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
):
    """DIM_BLOCK columns of the gradient of BLOCK_Q rows, by all rows of the other side.

    The rows [first_own, first_own + rows_own) take part, and those of the other side that dS
    [items, own, other], from first_item and (first_own, first_other) on, has and the band lets
    them see. len_other: where these end. ADD: to what is in grad_own.
    grad_v: [heads of the batch, own_blocks, DIM], a sum for each block of queries.
    """
    group, program = tl.program_id(0) % groups, tl.program_id(0) // groups
    block, item = program % blocks, program // blocks
    b = (first_item + item) // heads
    head = (first_item + item) % heads
    exist_own = first_own + rows_own
    exist_other = len_other
    if OWN_IS_QUERY:
        exist_other = key_length(key_lengths, b, exist_other, HAS_LENGTHS)
    else:
        exist_own = key_length(key_lengths, b, exist_own, HAS_LENGTHS)
    begin_own = first_own + block * BLOCK_Q
    row = begin_own + tl.arange(0, BLOCK_Q)
    columns = group * DIM_BLOCK + tl.arange(0, DIM_BLOCK)
    own_base = operand_base(own, b, head, 0, own_batch, own_head, own_row)
    other_base = operand_base(other, b, head, 0, other_batch, other_head, other_row)
    X = load_columns(own_base, row, row < exist_own, own_row, columns, DIM).to(tl.float32)
    scores = grad_scores + tl.cast(item, tl.int64) * scores_item
    scores += (row - first_own)[:, None].to(tl.int64) * scores_own

    slopes = tl.zeros([BLOCK_Q, BLOCK_KV, DIM_BLOCK], tl.float32)
    angles = tl.zeros([BLOCK_Q, BLOCK_KV, DIM_BLOCK], tl.float32)
    end_own = tl.minimum(begin_own + BLOCK_Q, exist_own)
    begin, end = band_kv_range(left, right, offset, begin_own, end_own, exist_other)
    begin = tl.maximum(begin, first_other)
    for other_begin in range(begin, end, BLOCK_KV):
        other_rows = other_begin + tl.arange(0, BLOCK_KV)
        exists = other_rows < end
        Y = load_columns(other_base, other_rows, exists, other_row, columns, DIM).to(tl.float32)
        dS = tl.load(
            scores + (other_rows - first_other)[None, :].to(tl.int64) * scores_other,
            mask=(row < exist_own)[:, None] & exists[None, :],
            other=0.0,
        )
        t = additive_tanh(X[:, None, :] + Y[None, :, :], ACCURATE, NATIVE_TANH)
        slopes += dS[:, :, None] * (1.0 - t * t)
        if OWN_IS_QUERY:
            angles += dS[:, :, None] * t

    weights = tl.load(v + head * DIM + columns, mask=columns < DIM, other=0.0).to(tl.float32)
    gradient = tl.sum(slopes, 1) * weights[None, :]
    grad_base = operand_base(grad_own, b, head, 0, grad_own_batch, grad_own_head, grad_own_row)
    written = row < first_own + rows_own
    if ADD:
        gradient += load_columns(grad_base, row, written, grad_own_row, columns, DIM)
    store_columns(grad_base, row, written, grad_own_row, columns, DIM, gradient)
    if OWN_IS_QUERY:
        sums = tl.sum(tl.sum(angles, 0), 0)
        place = tl.cast(first_item + item, tl.int64) * own_blocks + first_own // BLOCK_Q + block
        tl.store(grad_v + place * DIM + columns, sums, mask=columns < DIM)
