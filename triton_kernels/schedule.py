"""Which block of which head a program works on.

Programs start in the order of their number. Heads are taken in sections whose keys and values fit
into the L2 cache together; inside a section all heads do their last block first, which under a
causal mask is the longest, so that no long block is left over when the others have finished.
"""

from __future__ import annotations

import triton
import triton.language as tl

L2_SHARE = 16 << 20  # bytes of keys and values used at a time


def heads_side_by_side(heads: int, heads_per_kv_head: int, bytes_per_kv_head: int) -> int:
    """Heads of a section."""
    fitting = max(1, L2_SHARE // max(1, bytes_per_kv_head))
    return min(fitting * heads_per_kv_head, max(1, heads))


@triton.jit
def tile_index(item, blocks, heads, section):
    """(block, head) of a program; heads: those of all batch rows together."""
    per_section = blocks * section
    first = item // per_section * section
    in_section = item % per_section
    width = tl.minimum(heads - first, section)
    return blocks - 1 - in_section // width, first + in_section % width
