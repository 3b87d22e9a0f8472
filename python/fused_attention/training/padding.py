"""Rows of different lengths as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as int64 [rows, longest] and their lengths as int32 [rows]."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    table = torch.full((len(rows), int(lengths.max())), pad_id)
    for n, row in enumerate(rows):
        table[n, : len(row)] = torch.tensor(row)
    return table, lengths
