"""Decoding: a few queries attend to a cache of keys and values that grows in place.

The keys of a sequence are cut into parts, a program for each (flash decoding, Dao et al., 2023);
the heads of a group and the queries are the rows of a tile, so that what is read of the cache
serves all of them.

  append      new keys, rotated, and new values -> caches              decode_append.py
  decode      O_s = softmax(scores) V and lse_s of each part s of the keys
  combine     out, lse from all O_s and lse_s, if there is more than one part    decode_combine.py
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import operand_arguments
from .band import band_kv_range
from .decode_append import append_kernel
from .decode_arguments import SIZES, decode_arguments, decode_constants
from .decode_cache import cache_length, cache_row, key_places, load_cached
from .decode_combine import BLOCK_SPLITS, combine_kernel
from .decode_parts import Parts, part_range, parts_of
from .launch import Config, launch
from .rotary import load_rotated
from .scores import change_scores
from .softmax import online_softmax_finish, online_softmax_update, start_rows
from .tiles import cdiv, operand_base


@triton.jit(do_not_specialize=SIZES)
def decode_kernel(
    query,
    key_cache,
    value_cache,
    out,
    lse,
    part_out,
    part_lse,
    cache_lengths,
    cache_batch,
    cache_starts,
    block_table,
    rotary_cos,
    rotary_sin,
    alibi_slopes,
    sinks,
    query_batch,
    query_head,
    query_row,
    key_cache_batch,
    key_cache_head,
    key_cache_row,
    value_cache_batch,
    value_cache_head,
    value_cache_row,
    out_batch,
    out_head,
    out_row,
    batch,
    heads_q,
    heads_kv,
    group,
    len_q,
    len_new,
    capacity,
    page_size,
    pages,
    row_tiles,
    splits,
    left,
    right,
    alibi_batch,
    rotary_half,
    scale,
    exponent_scale,
    unit,
    softcap,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    PART_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    IS_PAGED: tl.constexpr,
    IS_COMBINED: tl.constexpr,
    IS_BATCH_INVARIANT: tl.constexpr,
    HAS_CACHE_BATCH: tl.constexpr,
    HAS_CACHE_STARTS: tl.constexpr,
    HAS_ROTARY: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    HAS_ALIBI: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    FOLD_SCALE: tl.constexpr,
    ACCURATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program for one part of the keys and BLOCK_Q rows: heads of a group times queries.

    part_out: [splits, batch, heads_q, len_q, PART_DIM] and part_lse without the dim, if
    IS_COMBINED; else out and lse [batch, heads_q, len_q] are final.
    """
    item = tl.program_id(0)
    first_row = item % row_tiles * BLOCK_Q
    split = item // row_tiles % splits
    head_kv = item // row_tiles // splits % heads_kv
    b = item // row_tiles // splits // heads_kv
    rows = first_row + tl.arange(0, BLOCK_Q)
    row_exists = rows < group * len_q
    q_row = rows // group
    head = head_kv * group + rows % group

    length = cache_length(cache_lengths, b, len_new, capacity)
    offset = length - len_q  # the last query meets the last key
    row_begin, row_end = band_kv_range(left, right, offset, q_row, q_row + 1, length)
    q_end = tl.minimum(first_row + BLOCK_Q, group * len_q)
    begin, end = band_kv_range(
        left, right, offset, first_row // group, (q_end - 1) // group + 1, length
    )
    if HAS_CACHE_STARTS:
        begin = tl.maximum(begin, tl.load(cache_starts + b))
    begin, end = part_range(begin, end, split, splits, BLOCK_KV, IS_BATCH_INVARIANT)

    columns = tl.arange(0, DIM_BLOCK)
    value_columns = tl.arange(0, VALUE_BLOCK)
    Q_rows = operand_base(query, b, head, q_row, query_batch, query_head, query_row)
    if HAS_ROTARY:
        position = tl.load(cache_lengths + b) + q_row
        Q_turned = load_rotated(
            *(Q_rows, row_exists, position, columns, rotary_cos, rotary_sin, rotary_half),
            *(DIM, IS_INTERLEAVED),
        )
        Q = Q_turned.to(query.dtype.element_ty)
        # What is lost by rounding is multiplied on its own; arithmetic waits for memory anyway.
        Q_rest = (Q_turned - Q.to(tl.float32)).to(query.dtype.element_ty)
    else:
        Q = load_cached(Q_rows, row_exists, columns, DIM, DIM_BLOCK)
    slope = 0.0
    if HAS_ALIBI:
        slopes = alibi_slopes + b * alibi_batch + head
        slope = tl.load(slopes, mask=row_exists, other=0.0)[:, None]

    heads_there = tl.where(row_exists, head, 0)
    row_max, row_sum = start_rows(sinks, heads_there, unit, HAS_SINKS and not IS_COMBINED, BLOCK_Q)
    sums = tl.zeros([BLOCK_Q, VALUE_BLOCK], tl.float32)
    cached = cache_row(cache_batch, b, HAS_CACHE_BATCH)
    for first in range(begin // BLOCK_KV * BLOCK_KV, end, BLOCK_KV):
        keys = first + tl.arange(0, BLOCK_KV)
        exists = (begin <= keys) & (keys < end)
        page, place = key_places(block_table, cached, b, keys, exists, page_size, pages, IS_PAGED)
        K_rows = operand_base(
            *(key_cache, page, head_kv, place, key_cache_batch, key_cache_head, key_cache_row)
        )
        K = load_cached(K_rows, exists, columns, DIM, DIM_BLOCK)
        S = tl.dot(Q, tl.trans(K), input_precision=PRECISION)
        if HAS_ROTARY and not ACCURATE:
            S = tl.dot(Q_rest, tl.trans(K), S, input_precision=PRECISION)
        distance = (q_row + offset)[:, None] - keys[None, :]
        S, _ = change_scores(
            *(S, scale, softcap, 0.0, slope, distance),
            *(FOLD_SCALE, HAS_SOFTCAP, False, HAS_ALIBI, True),  # lse is fp32 in any case
        )
        seen = (row_begin[:, None] <= keys[None, :]) & (keys[None, :] < row_end[:, None])
        S = tl.where(seen & exists[None, :], S, float("-inf"))
        P, row_max, row_sum, alpha = online_softmax_update(S, row_max, row_sum, exponent_scale)
        V_rows = operand_base(
            value_cache, page, head_kv, place, value_cache_batch, value_cache_head, value_cache_row
        )
        V = load_cached(V_rows, exists, value_columns, VALUE_DIM, VALUE_BLOCK)
        sums = tl.dot(P.to(V.dtype), V, sums * alpha[:, None], input_precision=PRECISION)

    inverse, row_lse = online_softmax_finish(row_max, row_sum, unit)
    sums = sums * inverse[:, None]
    row = (tl.cast(b, tl.int64) * heads_q + head) * len_q + q_row
    if IS_COMBINED:
        row += tl.cast(split, tl.int64) * batch * heads_q * len_q
        tl.store(part_lse + row, row_lse, mask=row_exists)
        # Of a part without keys the sums are not looked at.
        there = (row_exists & (begin < end))[:, None] & (value_columns < PART_DIM)[None, :]
        tl.store(part_out + row[:, None] * PART_DIM + value_columns[None, :], sums, mask=there)
    else:
        tl.store(lse + row, row_lse, mask=row_exists)
        O_rows = operand_base(out, b, head, q_row, out_batch, out_head, out_row)
        there = row_exists[:, None] & (value_columns < VALUE_DIM)[None, :]
        tl.store(
            O_rows[:, None] + value_columns[None, :], sums.to(out.dtype.element_ty), mask=there
        )


def attention_decode(call: Any, out: Tensor, lse: Tensor) -> None:
    """Store the new keys and values of a step of decoding, then attend.

    Args:
        call: the fields of DecodeCall in backends/call.py, fp16, bf16 or fp32.
        out: written; [B, Hq, Lq, Dv], last dimension contiguous.
        lse: written; fp32 [B, Hq, Lq], contiguous.
    """
    arguments, constants = decode_arguments(call), decode_constants(call)
    batch, heads_q, len_q, _ = call.query.shape
    heads_kv = call.key_cache.shape[1]
    if call.key is not None:
        block = min(16, triton.next_power_of_2(max(1, call.len_new)))
        grid = (batch * heads_kv * cdiv(call.len_new, block),)
        arguments |= operand_arguments("key", call.key) | operand_arguments("value", call.value)
        launch(append_kernel, grid, arguments, constants | {"BLOCK_NEW": block}, _SMALL)
    if lse.numel() == 0:
        return
    parts = parts_of(call)
    arguments |= {**operand_arguments("out", out), "lse": lse}
    arguments |= {"row_tiles": parts.row_tiles, "splits": parts.splits, "rows": lse.numel()}
    arguments |= _part_tensors(parts, lse, constants["PART_DIM"])
    constants |= {"BLOCK_Q": parts.config.block_q, "BLOCK_KV": parts.config.block_kv}
    constants |= {"IS_COMBINED": parts.combined, "BLOCK_SPLITS": BLOCK_SPLITS}
    grid = (parts.row_tiles * parts.splits * heads_kv * batch,)
    launch(decode_kernel, grid, arguments, constants, parts.config)
    if parts.combined:
        launch(combine_kernel, (lse.numel(),), arguments, constants, _SMALL)


_SMALL = Config(block_q=1, block_kv=1, num_warps=4, num_stages=1)


def _part_tensors(parts: Parts, lse: Tensor, width: int) -> dict[str, Any]:
    """Room for the results of all parts."""
    if not parts.combined:
        return {"part_out": None, "part_lse": None}
    rows = (parts.splits, lse.numel())
    return {
        "part_out": torch.empty((*rows, width), dtype=torch.float32, device=lse.device),
        "part_lse": torch.empty(rows, dtype=torch.float32, device=lse.device),
    }
