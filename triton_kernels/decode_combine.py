"""Parts of one row's keys become its result. With the parts' normalised sums O_s and lse_s,

  out = sum_s e^(lse_s - lse) O_s,   lse = log(sum_s e^lse_s + e^sink)

always in the order of the keys, so that results repeat. A part without visible keys has lse -inf
and its sums are not looked at.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .softmax import LOG2_E
from .tiles import operand_base

BLOCK_SPLITS = 16  # parts that are added at a time, whatever their number: results stay the same


@triton.jit
def combine_kernel(
    out,
    lse,
    part_out,
    part_lse,
    sinks,
    out_batch,
    out_head,
    out_row,
    rows,
    heads_q,
    len_q,
    splits,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    PART_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """A program for each of the batch * heads_q * len_q rows.

    part_out: [splits, rows, PART_DIM]; part_lse: [splits, rows]; lse: [rows].
    """
    r = tl.program_id(0)
    head = r // len_q % heads_q
    parts = tl.arange(0, BLOCK_SPLITS)
    columns = tl.arange(0, VALUE_BLOCK)

    top = tl.full([1], float("-inf"), tl.float32)
    if HAS_SINKS:
        top = tl.maximum(top, tl.load(sinks + head))
    sink = top
    for first in range(0, splits, BLOCK_SPLITS):
        at = (first + parts).to(tl.int64) * rows + r
        part = tl.load(part_lse + at, mask=first + parts < splits, other=float("-inf"))
        top = tl.maximum(top, tl.max(part, 0))
    shift = tl.where(top == float("-inf"), 0.0, top)

    total = tl.exp2((sink - shift) * LOG2_E)
    sums = tl.zeros([VALUE_BLOCK], tl.float32)
    for first in range(0, splits, BLOCK_SPLITS):
        at = (first + parts).to(tl.int64) * rows + r
        part = tl.load(part_lse + at, mask=first + parts < splits, other=float("-inf"))
        weight = tl.exp2((part - shift) * LOG2_E)
        total += tl.sum(weight, 0)
        # Without weight there may be nothing to read.
        weighs = (weight != 0.0)[:, None] & (columns < VALUE_DIM)[None, :]
        O_s = tl.load(part_out + at[:, None] * PART_DIM + columns[None, :], mask=weighs, other=0.0)
        sums += tl.sum(weight[:, None] * O_s, 0)

    alive = total != 0.0
    safe = tl.where(alive, total, 1.0)
    sums = tl.where(alive, sums / safe, 0.0)
    base = operand_base(out, r // len_q // heads_q, head, r % len_q, out_batch, out_head, out_row)
    tl.store(base + columns, sums.to(out.dtype.element_ty), mask=columns < VALUE_DIM)
    one = r + tl.arange(0, 1)
    tl.store(lse + one, tl.where(alive, shift + tl.log(safe), float("-inf")))
