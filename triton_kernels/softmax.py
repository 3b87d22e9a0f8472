"""Online softmax of a tile's rows, and what becomes of rows that see no key.

-inf: a row that has seen no key yet has maximum -inf. Shifting by 0 instead keeps every exponent at
2^-inf = 0, so sums stay 0 and no NaN can arise.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def start_rows(sinks, heads, unit, HAS_SINKS: tl.constexpr, BLOCK: tl.constexpr):
    """Maximum and sum of each row before the first key: nothing, or the sink of its head.

    heads: a scalar or [BLOCK]; unit: what the kernel's scores are to be multiplied by to be natural
    ones. A sink is a key with score `sink` and value 0.
    """
    row_max = tl.full([BLOCK], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK], tl.float32)
    if HAS_SINKS:
        sink = tl.load(sinks + heads) + tl.zeros([BLOCK], tl.float32)
        row_sum = tl.where(sink == float("-inf"), 0.0, 1.0)
        row_max = tl.where(sink == float("-inf"), sink, sink / unit)
    return row_max, row_sum


@triton.jit
def online_softmax_update(S, row_max, row_sum, exponent_scale, ACCURATE: tl.constexpr = False):
    """P = 2^((S - new maximum) * exponent_scale), the new maximum and sum, and alpha.

    alpha: [rows], what everything that was summed before has to be multiplied by. ACCURATE: the
    error of P does not grow with the scores even where a product and a sum are rounded one by one;
    else both are one instruction of a GPU.
    """
    top = tl.maximum(row_max, tl.max(S, 1))
    shift = tl.where(top == float("-inf"), 0.0, top) * exponent_scale
    alpha = tl.exp2(row_max * exponent_scale - shift)
    if ACCURATE:
        P = tl.exp2((S - tl.where(top == float("-inf"), 0.0, top)[:, None]) * exponent_scale)
    else:
        P = tl.exp2(S * exponent_scale - shift[:, None])
    return P, top, row_sum * alpha + tl.sum(P, 1), alpha


@triton.jit
def online_softmax_finish(row_max, row_sum, unit):
    """1 / sum, which is 0 in a row without keys, and lse, -inf there."""
    alive = row_sum != 0.0
    safe = tl.where(alive, row_sum, 1.0)
    inverse = tl.where(alive, 1.0 / safe, 0.0)
    lse = tl.where(alive, row_max * unit + tl.log(safe), float("-inf"))
    return inverse, lse


@triton.jit
def softmax_weights(S, lse, exponent_scale):
    """P = e^(S - lse) of final scores, for the backward; rows without keys give 0.

    S: in the kernel's scores, as in `online_softmax_update`; lse: [rows] natural log.
    """
    shift = tl.where(lse == float("-inf"), 0.0, lse) * LOG2_E
    return tl.exp2(S * exponent_scale - shift[:, None])
