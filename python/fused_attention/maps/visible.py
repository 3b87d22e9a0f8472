"""How many queries see a key, by band and lengths alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_attention.maps.call import MapsCall


def queries_that_see(call: MapsCall) -> Tensor:
    """int64 [B|1, 1, Lk], packed [Tk]: queries to which the band and the lengths show the key."""
    device = call.query.device
    if not call.packed:
        key = torch.arange(call.key.shape[2], device=device)
        offset = _per_row(call.band_offsets, call.offset)
        count = _count(call, key, offset, call.query.shape[2])
        if call.kv_lengths is not None:
            count = count.masked_fill(key >= _per_row(call.kv_lengths, 0), 0)
        return count
    assert call.cu_seqlens_q is not None and call.cu_seqlens_k is not None
    row = torch.arange(call.key.shape[0], device=device)
    ends = call.cu_seqlens_k[1:]
    sequence = torch.searchsorted(ends, row, right=True, out_int32=True)
    behind = sequence == ends.shape[0]
    if ends.shape[0] == 0:
        return torch.zeros_like(row)
    sequence = sequence.clamp(max=ends.shape[0] - 1)
    lengths = call.cu_seqlens_q.diff()[sequence]
    offset = call.offset if call.band_offsets is None else call.band_offsets[sequence]
    count = _count(call, row - call.cu_seqlens_k[sequence], offset, lengths)
    return count.masked_fill(behind, 0)


def _count(call: MapsCall, key: Tensor, offset: Tensor | int, len_q: Tensor | int) -> Tensor:
    """Queries i in [0, len_q) with i + offset - left <= key <= i + offset + right."""
    begin = (key - offset - call.right).clamp(min=0)
    end = (key - offset + call.left + 1).clamp(max=len_q)
    return (end - begin).clamp(min=0)


def _per_row(values: Tensor | None, default: int) -> Tensor | int:
    """[B] as int64 [B, 1, 1]."""
    return default if values is None else values.long()[:, None, None]
