"""What one operator call carries from the door down to a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.backends.call import empty_like_layout
from fused_attention.checks import check_range
from fused_attention.masks import Band


class AdditiveCall(NamedTuple):
    """Tensors and scalars of one call; the fields stand in the operator's argument order."""

    query: Tensor  # [B, H, Lq, D], contiguous rows, bias added
    key: Tensor  # [B, H, Lk, D]
    value: Tensor  # [B, H, Lk, Dv]
    v: Tensor  # [H, D] contiguous, fp32 (fp64 for fp64), normed
    key_lengths: Tensor | None  # int32 [B], contiguous
    left: int
    right: int
    offset: int

    @property
    def band(self) -> Band:
        return Band(self.left, self.right, self.offset)

    def empty_results(self) -> tuple[Tensor, Tensor]:
        """Unwritten out [B, H, Lq, Dv], in the query's order of dimensions, lse [B, H, Lq]."""
        out = empty_like_layout(self.query, self.value.shape[-1])
        return out, self.query.new_empty(self.query.shape[:-1], dtype=wide_dtype(self.query))


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of v and lse."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def check_values(call: AdditiveCall) -> None:
    """Check key_lengths on the CPU; on an accelerator reading them would stall the stream.

    Raises:
        ValueError: a length is out of range.
    """
    if call.key_lengths is not None and call.query.device.type == "cpu":
        len_k = call.key.shape[2]
        rule = f"must be in [0, {len_k}] ({len_k} is key_proj's length)"
        check_range("key_lengths", call.key_lengths, 0, len_k, rule)
