"""Dropout (Srivastava et al. 2014) whose random numbers do not take longer than its layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_attention.shortcut import transforms_active

_LEVELS = 1 << 16  # of a 16-bit random number


def dropout(x: Tensor, chance: float, training: bool) -> Tensor:
    """Zeros with this chance in training, and what stays scaled up to the same mean.

    On CPUs torch draws one 64-bit number for each element, one after the other. Here four elements
    share one, which rounds the chance to a multiple of 2**-16, and the scale is that of the rounded
    chance. The masks are a function of torch's generator as torch's own are.

    Args:
        x: any shape, floating point.
        chance: in [0, 1).
    """
    level = round(chance * _LEVELS)
    drops = training and 0 < level < _LEVELS
    elsewhere = x.device.type != "cpu" or torch.compiler.is_compiling() or transforms_active()
    if elsewhere or not drops:
        return F.dropout(x, chance, training)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= level - _LEVELS // 2
    return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - level))
