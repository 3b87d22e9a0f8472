"""Whether torch's autocast is on for a device, and how a part of a call escapes it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on; torch knows none for meta tensors and raises."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Where the dtypes are settled: autocast would lower fp32 products again."""
    if autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def lowered(first: Any, *others: Any) -> tuple[Any, ...]:
    """The arguments as torch has them around scaled_dot_product_attention.

    Where autocast is on for the first one's device, all floating tensors but fp64 get its dtype;
    whatever else is among them stays as it is.
    """
    tensors = (first, *others)
    if not isinstance(first, Tensor) or not autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)

    def cast(tensor: Any) -> Any:
        lower = isinstance(tensor, Tensor) and tensor.is_floating_point()
        return tensor.to(dtype) if lower and tensor.dtype != torch.float64 else tensor

    return tuple(map(cast, tensors))
