"""The band inside kernels: the functions of masks.py, on scalars and on blocks of rows.

A band is three integers (left, right, offset); sums of them leave 32 bits, so they are formed in
64. Results are 32-bit again: they lie between 0 and a length.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def band_visible(left, right, offset, q_row, k_row, kv_length):
    """Whether the key is visible to the query: the definition."""
    diagonal = tl.cast(q_row, tl.int64) + offset
    return (diagonal - left <= k_row) & (k_row <= diagonal + right) & (k_row < kv_length)


@triton.jit
def band_clip(begin, end, length):
    """[begin, end) inside of [0, length) as 32-bit integers; (0, 0) if nothing is left."""
    begin = tl.maximum(begin, 0)
    end = tl.minimum(end, length)
    some = begin < end
    return tl.where(some, begin, 0).to(tl.int32), tl.where(some, end, 0).to(tl.int32)


@triton.jit
def band_kv_range(left, right, offset, q_begin, q_end, kv_length):
    """Keys [begin, end) that any of the queries [q_begin, q_end) sees; (0, 0) if none."""
    first = tl.cast(q_begin, tl.int64) + offset - left
    last = tl.cast(q_end, tl.int64) + offset + right
    return band_clip(first, tl.where(q_begin < q_end, last, 0), tl.cast(kv_length, tl.int64))


@triton.jit
def band_full_kv_range(left, right, offset, q_begin, q_end, kv_length):
    """Keys [begin, end) that all of the queries [q_begin, q_end) see; (0, 0) if none."""
    first = tl.cast(q_end, tl.int64) - 1 + offset - left
    last = tl.cast(q_begin, tl.int64) + offset + right + 1
    return band_clip(first, tl.where(q_begin < q_end, last, 0), tl.cast(kv_length, tl.int64))


@triton.jit
def band_q_range(left, right, offset, k_begin, k_end, len_q):
    """Queries [begin, end) that see any of the keys [k_begin, k_end); (0, 0) if none.

    The caller keeps k_end <= kv_length: a key that does not exist is seen by nobody.
    """
    first = tl.cast(k_begin, tl.int64) - right - offset
    last = tl.cast(k_end, tl.int64) + left - offset
    return band_clip(first, tl.where(k_begin < k_end, last, 0), tl.cast(len_q, tl.int64))


@triton.jit
def band_full_q_range(left, right, offset, k_begin, k_end, len_q):
    """Queries [begin, end) that see all of the keys [k_begin, k_end); (0, 0) if none.

    The caller keeps k_end <= kv_length, as for `band_q_range`.
    """
    first = tl.cast(k_end, tl.int64) - 1 - right - offset
    last = tl.cast(k_begin, tl.int64) + left - offset + 1
    return band_clip(first, tl.where(k_begin < k_end, last, 0), tl.cast(len_q, tl.int64))
