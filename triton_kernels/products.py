"""Products of tiles whose rows may be longer than what fits on a chip."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import load_columns


@triton.jit
def product_of_rows(
    left,
    left_rows,
    left_exists,
    left_stride,
    right,
    right_rows,
    right_exists,
    right_stride,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr,
):
    """left right^T of a tile, any DIM, in fp32; rows that do not exist count as zeros."""
    product = tl.zeros([BLOCK_LEFT, BLOCK_RIGHT], tl.float32)
    for begin in range(0, DIM, DIM_BLOCK):
        columns = begin + tl.arange(0, DIM_BLOCK)
        A = load_columns(left, left_rows, left_exists, left_stride, columns, DIM)
        B = load_columns(right, right_rows, right_exists, right_stride, columns, DIM)
        if BLOCK_LEFT >= 16:
            product = tl.dot(A, tl.trans(B), product, input_precision=PRECISION)
        else:
            terms = A.to(tl.float32)[:, None, :] * B.to(tl.float32)[None, :, :]
            product += tl.sum(terms, 2)
    return product


@triton.jit
def add_weighted_rows(acc, P, V, PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr):
    """acc + P V; P [BLOCK_Q, keys] is rounded to V's type where the tile is large enough to dot."""
    if BLOCK_Q >= 16:
        return tl.dot(P.to(V.dtype), V, acc, input_precision=PRECISION)
    else:
        return acc + tl.sum(P[:, :, None] * V.to(tl.float32)[None, :, :], 1)
