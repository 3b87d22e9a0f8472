"""When the way through torch's dispatcher, microseconds for many arguments, may be left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# What the arguments of an operator are where nobody puts something of his own in a tensor's place.
_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_PLAIN = _TENSORS | {type(None), int, float, bool, str}


def plain_tensors(*values: Any) -> bool:
    """Whether all of them are tensors of torch's own two types."""
    return _TENSORS.issuperset(map(type, values))


def transforms_active() -> bool:
    """Whether torch.func or forward-mode differentiation may need the autograd kernels."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def watched(args: Sequence[Any]) -> bool:
    """Whether an operator's call must be seen, and not only its results.

    By torch.func's transforms, forward-mode differentiation, modes, traces, the profiler,
    subclasses of Tensor, symbolic sizes, or the meta device, which has no numbers.

    Args:
        args: the operator's arguments; the first is a tensor.
    """
    return (
        not _PLAIN.issuperset(map(type, args))
        or transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._autograd._profiler_enabled()
        or torch._C._get_tracing_state() is not None
        or args[0].is_meta
    )
