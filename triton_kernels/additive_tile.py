"""Scores of additive attention, tile by tile.

    S_ij = sum_d v_d tanh(q_id + k_jd)

One tanh for each query, key and dim: that is what takes a GPU's time, and no tensor core helps. A
tile is [queries, keys, dims]; its sums are kept until the last dim and added up once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import SIZES
from .scores import tanh
from .tiles import load_columns

# Integers that a kernel is not compiled anew for; see arguments.py.
ADDITIVE_SIZES = (
    *(*SIZES, "heads", "groups", "first_item", "first_query", "rows", "key_blocks", "own_blocks"),
    *("first_own", "first_other", "rows_own", "len_other", "scores_item", "scores_own"),
)


@triton.jit
def additive_tanh(x, ACCURATE: tl.constexpr, NATIVE_TANH: tl.constexpr):
    """tanh of fp32. NATIVE_TANH: one instruction of NVIDIA's chips, of 11 bits, enough for fp16."""
    if NATIVE_TANH:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tanh(x, ACCURATE)


@triton.jit
def additive_scores(
    query,
    q_row,
    q_exists,
    query_row,
    key,
    k_row,
    k_exists,
    key_row,
    v,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    ACCURATE: tl.constexpr,
    NATIVE_TANH: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """Scores of a tile, without the mask, in fp32; rows that do not exist count as zeros."""
    sums = tl.zeros([BLOCK_Q, BLOCK_KV, DIM_BLOCK], tl.float32)
    columns = tl.arange(0, DIM_BLOCK)
    Q = load_columns(query, q_row, q_exists, query_row, columns, DIM)
    K = load_columns(key, k_row, k_exists, key_row, columns, DIM)
    for begin in range(0, DIM, DIM_BLOCK):
        # The next dims are on their way while these are computed with.
        columns = begin + DIM_BLOCK + tl.arange(0, DIM_BLOCK)
        next_Q = load_columns(query, q_row, q_exists, query_row, columns, DIM)
        next_K = load_columns(key, k_row, k_exists, key_row, columns, DIM)
        weights = tl.load(v + columns - DIM_BLOCK, mask=columns - DIM_BLOCK < DIM, other=0.0)
        angles = Q.to(tl.float32)[:, None, :] + K.to(tl.float32)[None, :, :]
        sums += weights[None, None, :] * additive_tanh(angles, ACCURATE, NATIVE_TANH)
        Q = next_Q
        K = next_K
    return tl.sum(sums, 2)
