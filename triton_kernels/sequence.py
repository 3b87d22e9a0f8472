"""Where the rows of a batch row lie and how far they reach: dense, packed, with lengths."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sequence_of(
    b,
    batch,
    len_q,
    len_k,
    total_q,
    total_k,
    offset,
    cu_seqlens_q,
    cu_seqlens_k,
    kv_lengths,
    band_offsets,
    IS_PACKED: tl.constexpr,
    HAS_KV_LENGTHS: tl.constexpr,
    HAS_BAND_OFFSETS: tl.constexpr,
):
    """(row of the batch dimension, first query, first key, queries, keys, band offset) of b.

    Packed tensors have no batch dimension: its row is 0. There b == batch stands for the rows
    behind the last sequence. They belong to nobody, see nothing and are written like all others.

    Sequences are clipped to the packed tensors and lengths to 0: wrong numbers, which the host
    cannot see without waiting for the device, give wrong results and nothing worse.
    """
    in_batch = b < batch
    row = b
    q_start = 0
    k_start = 0
    rows_q = len_q
    rows_k = len_k
    if IS_PACKED:
        row = 0
        q_start = tl.minimum(tl.maximum(tl.load(cu_seqlens_q + b), 0), total_q)
        k_start = tl.minimum(tl.maximum(tl.load(cu_seqlens_k + b), 0), total_k)
        q_end = tl.load(cu_seqlens_q + b + 1, mask=in_batch, other=total_q)
        k_end = tl.load(cu_seqlens_k + b + 1, mask=in_batch, other=0)
        rows_q = tl.maximum(tl.minimum(q_end, total_q) - q_start, 0)
        rows_k = tl.maximum(tl.minimum(k_end, total_k) - k_start, 0)
    rows_k = key_length(kv_lengths, b, rows_k, HAS_KV_LENGTHS)
    if HAS_BAND_OFFSETS:
        offset = tl.load(band_offsets + b, mask=in_batch, other=0)
    return row, q_start, k_start, rows_q, rows_k, offset


@triton.jit
def key_length(key_lengths, b, len_k, HAS_LENGTHS: tl.constexpr):
    """Keys that exist in a row of the batch: lengths are clipped to what there is."""
    if HAS_LENGTHS:
        return tl.maximum(tl.minimum(tl.load(key_lengths + b), len_k), 0)
    else:
        return len_k
