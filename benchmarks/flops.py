"""Useful floating-point operations of attention: only what the mask leaves visible is counted."""

from __future__ import annotations

import torch

from fused_attention import Band

# Five products of the size of the forward's two (S, dP, dV, dK, dQ), as the literature counts them.
BACKWARD_OVER_FORWARD = 2.5


def visible_pairs(band: Band, len_q: int, len_k: int) -> int:
    """Number of (query, key) pairs that see each other, counted row by row, exactly."""
    resolved = band.resolve(len_q, len_k)
    offset = resolved.offset
    assert offset is not None  # resolve() always sets it
    rows = torch.arange(len_q, dtype=torch.int64)
    begin = (rows + (offset - resolved.left)).clamp(0, len_k)
    end = (rows + (offset + resolved.right + 1)).clamp(0, len_k)
    return int((end - begin).clamp(min=0).sum())


def forward_flops(
    band: Band, len_q: int, len_k: int, head_dim: int, value_dim: int | None = None
) -> int:
    """2 * D for a score and 2 * Dv for its part of the output, per visible pair of one head."""
    width = head_dim + (head_dim if value_dim is None else value_dim)
    return 2 * width * visible_pairs(band, len_q, len_k)


def flops_in_direction(forward: int, direction: str) -> float:
    """FLOPs of "forward" or "backward", from the forward's count."""
    return forward * (BACKWARD_OVER_FORWARD if direction == "backward" else 1.0)
