"""Sequences that lie apart: caches with padding, unused tokens, chunks, without moving a token.

A packed batch has no room between its sequences. Where flash-attn's arguments leave some (left
padding, seqused_k, pages that are not full), the rows between become sequences of their own, of
keys that no query sees and of queries that see no key.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention.compat.logged import attention_varlen

PIECES = 3  # sequences that stand for one span: unused queries, unused keys, the span


class Spans(NamedTuple):
    """Rows [begin, end) of each sequence, ascending, in packed queries and packed keys."""

    q_begin: Tensor  # int [N]
    q_end: Tensor
    k_begin: Tensor
    k_end: Tensor
    band_offsets: Tensor | None = None  # int [N]; None: each sequence's Lk - Lq

    def cu_seqlens(self) -> tuple[Tensor, Tensor]:
        """The packed batch of 3 N sequences, of which every third is a span."""
        k_before = torch.cat([torch.zeros_like(self.k_end[:1]), self.k_end[:-1]])
        q_ends = torch.stack([self.q_begin, self.q_begin, self.q_end], dim=1)
        k_ends = torch.stack([k_before, self.k_begin, self.k_end], dim=1)
        return _ends(q_ends), _ends(k_ends)


def attend_spans(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    *,
    alibi_slopes: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Attention of each span's queries to its keys.

    Args:
        query: [Tq, Hq, D]; key: [Tk, Hkv, D]; value: [Tk, Hkv, Dv].
        alibi_slopes: [Hq] or [N, Hq].
        options: further keywords of `attention_varlen`; a max_seqlen counts what lies between
            the spans too.

    Returns:
        out [Tq, Hq, Dv] and lse [Hq, Tq]; 0 and -inf between the spans.
    """
    if alibi_slopes is not None and alibi_slopes.dim() == 2:
        alibi_slopes = alibi_slopes.repeat_interleave(PIECES, dim=0)
    offsets = spans.band_offsets
    if offsets is not None:
        offsets = offsets.repeat_interleave(PIECES)
    found: tuple[Tensor, Tensor] = attention_varlen(
        query,
        key,
        value,
        *spans.cu_seqlens(),
        alibi_slopes=alibi_slopes,
        band_offsets=offsets,
        return_lse=True,
        **options,
    )
    return found


def spans_of_packed(
    cu_seqlens: Tensor, used: Tensor | None = None, leftpad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Begin and end of packed sequences.

    Args:
        cu_seqlens: integer [N + 1].
        used: integer [N], rows of each sequence that count; default all.
        leftpad: integer [N], rows at the beginning that do not.
    """
    begin = cu_seqlens[:-1]
    end = cu_seqlens[1:] if used is None else begin + used
    return (begin if leftpad is None else begin + leftpad), end


def spans_of_rows(batch: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Begin and end of the rows of a [batch, rows, ...] tensor whose first dimensions are one."""
    begin = torch.arange(batch, dtype=torch.int32, device=device) * rows
    return begin, begin + rows


def split_chunks(spans: Spans, chunk: int) -> Spans:
    """The spans cut where attention_chunk cuts them: a query sees keys of its own chunk only.

    The chunk of key j is j // chunk, that of query i is (i + Lk - Lq) // chunk. How many pieces
    there are depends on the numbers, so this reads them: on an accelerator it waits.
    """
    pieces = []
    for q_begin, q_end, k_begin, k_end in zip(*(ends.tolist() for ends in spans[:4]), strict=True):
        offset = (k_end - k_begin) - (q_end - q_begin)
        for first in range(offset // chunk * chunk, q_end - q_begin + offset, chunk):
            q_first = max(first - offset, 0)
            q_last = min(first + chunk - offset, q_end - q_begin)
            k_first, k_last = (min(max(k, 0), k_end - k_begin) for k in (first, first + chunk))
            band_offset = q_first + offset - k_first
            rows = q_begin + q_first, q_begin + q_last, k_begin + k_first, k_begin + k_last
            pieces.append((*rows, band_offset))
    columns = torch.tensor(pieces, dtype=torch.int32, device=spans.q_begin.device)
    return Spans(*columns.reshape(-1, len(Spans._fields)).unbind(dim=1))


def _ends(ends: Tensor) -> Tensor:
    return torch.cat([ends.new_zeros(1), ends.flatten()])
