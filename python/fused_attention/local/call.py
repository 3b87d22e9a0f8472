"""What one operator call of local attention carries down to a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.backends.call import empty_like_layout


class LocalCall(NamedTuple):
    """Tensors and scalars of one call; the fields stand in the operator's argument order."""

    query: Tensor  # [B, Hq, Lq, D], last dimension contiguous, as of key and value
    key: Tensor  # [B, Hkv, Lk, D]
    value: Tensor  # [B, Hkv, Lk, Dv]
    position: Tensor  # [B, Hq, Lq] in key indices, contiguous fp32 (fp64 for fp64)
    sigma: Tensor | None  # like position; None: fixed_sigma
    key_lengths: Tensor | None  # int32 [B]
    width: float  # half width of the window; inf: every key
    fixed_sigma: float  # inf: no Gaussian
    scale: float
    log_bias: bool  # the Gaussian's logarithm is added to the scores

    def empty_results(self) -> tuple[Tensor, Tensor]:
        """Unwritten out [B, Hq, Lq, Dv] in query's layout, and lse [B, Hq, Lq]."""
        wide = self.query.dtype == torch.float64
        dtype = torch.float64 if wide else torch.float32
        lse = self.query.new_empty(self.query.shape[:-1], dtype=dtype)
        return empty_like_layout(self.query, self.value.shape[-1]), lse


class LocalGradients(NamedTuple):
    """Gradients of one call, each in the shape and dtype of its input."""

    query: Tensor
    key: Tensor
    value: Tensor
    position: Tensor
    sigma: Tensor | None
