"""Whether torch's autocast is on for a device, and how a part of a call escapes it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on; torch knows none for meta tensors and raises."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Where the dtypes are settled: autocast would lower fp32 products again."""
    if autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
