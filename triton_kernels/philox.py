"""The dropout mask inside kernels, bit for bit that of the package's philox.py.

One Philox call decides the eight keys {2t, 2t + 1} + {0, 8, 16, 24} of a group of 32. Kernels make
that call once and spread its 16-bit halves over the tile, instead of calling it for each element.
"""

from __future__ import annotations

import triton
import triton.language as tl

RANDOM_RANGE = 1 << 16  # one dropout decision takes 16 random bits


def dropout_threshold(dropout_p: float) -> int:
    """The 16-bit number below which a probability is dropped."""
    return round(dropout_p * RANDOM_RANGE)


def dropout_keep_scale(dropout_p: float) -> float:
    """What kept values are multiplied by: one over the exact chance to be kept."""
    return 1.0 / (1.0 - dropout_threshold(dropout_p) / RANDOM_RANGE)


@triton.jit
def dropout_keep(rng_state, stream, q_row, k_begin, threshold, BLOCK_KV: tl.constexpr):
    """Which elements of a tile survive: bool [queries, BLOCK_KV].

    rng_state: int64 [2], seed and offset; stream: b * heads + h, a scalar or [queries, 1] of them;
    q_row: [queries] inside the sequence; k_begin: first key, a multiple of 32, as is BLOCK_KV.
    """
    seed = tl.load(rng_state).to(tl.uint64, bitcast=True)
    offset = tl.load(rng_state + 1).to(tl.uint64, bitcast=True)
    call = k_begin // 8 + tl.arange(0, BLOCK_KV // 8)
    w0, w1, w2, w3 = tl.philox_impl(
        call[None, :].to(tl.uint32),
        q_row[:, None].to(tl.uint32),
        stream.to(tl.uint32),
        offset.to(tl.uint32),
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )
    # [queries, groups of 32, call in the group, high bit of the word's number, low bit]
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    words = tl.reshape(words, [q_row.shape[0], BLOCK_KV // 32, 4, 2, 2])
    words = tl.permute(words, [0, 1, 3, 4, 2])
    halves = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(halves, [q_row.shape[0], BLOCK_KV]) >= threshold.to(tl.uint32)
