"""Rotary position embedding (Su et al., 2021, eq. 34) of rows as they are loaded."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rotated(
    rows,
    exists,
    positions,
    columns,
    cos,
    sin,
    half,
    DIM: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
):
    """Rows turned by their positions, fp32 [rows, columns]; 0 where there is nothing.

    Pairs of columns are (2 n, 2 n + 1) if IS_INTERLEAVED, else (n, n + half); columns from 2 half
    on stay as they are.

    rows: pointers [rows]; exists: bool [rows]; positions: [rows]; columns: [columns]; cos, sin:
    [positions, half].
    """
    if IS_INTERLEAVED:
        pair = columns // 2
        is_first = columns % 2 == 0
        partner = columns ^ 1
    else:
        is_first = columns < half
        pair = tl.where(is_first, columns, columns - half)
        partner = tl.where(is_first, columns + half, columns - half)
    there = exists[:, None] & (columns < DIM)[None, :]
    turns = exists[:, None] & (columns < 2 * half)[None, :]
    own = tl.load(rows[:, None] + columns[None, :], mask=there, other=0.0).to(tl.float32)
    other = tl.load(rows[:, None] + partner[None, :], mask=turns, other=0.0).to(tl.float32)
    angle = tl.cast(positions, tl.int64)[:, None] * half + pair[None, :]
    # What does not turn turns by 0.
    c = tl.load(cos + angle, mask=turns, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=turns, other=0.0).to(tl.float32)
    return own * c + tl.where(is_first[None, :], -other, other) * s
