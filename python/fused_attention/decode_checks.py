"""What the numbers inside the tensors of a step of decoding must be; runs inside the operator.

On the CPU alone: on an accelerator reading them would stall the stream, so there they are trusted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fused_attention.checks import wrong_value

if TYPE_CHECKING:
    from torch import Tensor

    from fused_attention.backends.call import DecodeCall


def check_decode_values(call: DecodeCall) -> None:
    """Check lengths, rows, pages and positions of a call before anything is written.

    Raises:
        ValueError: cache_lengths, cache_batch, cache_starts, block_table or the new keys' positions
            are out of range, or two sequences store a key in the same place.
    """
    if call.query.device.type != "cpu":
        return
    lengths, new, capacity = call.cache_lengths.tolist(), call.len_new, call.capacity
    for index, length in enumerate(lengths):
        if not 0 <= length <= capacity - new:
            rule = f"with {new} new keys must be in [0, {capacity - new}]"
            wrong_value("cache_lengths", rule, f"{length} at index {index}")
    if call.cache_starts is not None:
        for index, start in enumerate(call.cache_starts.tolist()):
            if not 0 <= start <= lengths[index] + new:
                rule = f"must be in [0, {lengths[index] + new}], the sequence's length"
                wrong_value("cache_starts", rule, f"{start} at index {index}")
    if call.cache_batch is not None:
        _check_cache_batch(call.cache_batch.tolist(), call.key_cache.shape[0], new)
    if call.block_table is not None and lengths:
        _check_pages(call, call.block_table)
    if call.rotary_cos is not None and lengths:
        turned = max(new, call.query.shape[2])
        if max(lengths) + turned > call.rotary_cos.shape[0]:
            rule = f"must have a row for each position up to {max(lengths) + turned - 1}"
            wrong_value("rotary_cos", rule, call.rotary_cos.shape[0])


def _check_cache_batch(rows: list[int], count: int, new: int) -> None:
    for index, row in enumerate(rows):
        if not 0 <= row < count:
            wrong_value("cache_batch", f"must be in [0, {count})", f"{row} at index {index}")
    if new and len(set(rows)) < len(rows):
        wrong_value("cache_batch", "must not repeat a row in which new keys are stored", rows)


def _check_pages(call: DecodeCall, table: Tensor) -> None:
    pages, page_size = call.key_cache.shape[0], call.key_cache.shape[2]
    if table.numel():
        # Entries that are not in use may hold anything; mostly none does.
        low, high = torch.aminmax(table)
        if int(low) < 0 or int(high) >= pages:
            begins = torch.arange(0, call.capacity, page_size)
            used = begins < (call.cache_lengths + call.len_new)[:, None]
            wrong = table[used & ((table < 0) | (table >= pages))]
            if wrong.numel():
                rule = f"the pages in use must be in [0, {pages})"
                wrong_value("block_table", rule, int(wrong[0]))
    if call.len_new and len(table) > 1:
        slots = call.cache_lengths[:, None] + torch.arange(call.len_new)
        places = table.gather(1, slots // page_size) * page_size + slots % page_size
        if places.unique().numel() < places.numel():
            rule = "two sequences must not store new keys in the same place of a page"
            wrong_value("block_table", rule, "shared pages")
