"""The Triton kernels of additive attention, forward and backward, on GPUs of NVIDIA and AMD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention.additive.call import AdditiveCall
from fused_attention.backends.triton import DEVICE_TYPES, NAME, no_kernel_for, on_device_of

if TYPE_CHECKING:
    from fused_attention.additive.problem import AdditiveProblem

__all__ = ["DEVICE_TYPES", "NAME", "backward", "forward", "why_not"]


def why_not(problem: AdditiveProblem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    return no_kernel_for(problem.device_type, problem.dtype)


def forward(call: AdditiveCall) -> tuple[Tensor, Tensor]:
    """out and lse of one call; see AdditiveCall for shapes."""
    from fused_attention.triton_kernels.additive import additive_forward

    out, lse = call.empty_results()
    with on_device_of(out):
        additive_forward(call, out, lse)
    return out, lse


def backward(
    call: AdditiveCall,
    grads: Sequence[Tensor | None],
    results: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of query, key, value and v, those that are needed."""
    from fused_attention.triton_kernels.additive_backward import additive_backward

    inputs = (call.query, call.key, call.value, call.v)
    found = [
        torch.empty_like(x) if asked else None for x, asked in zip(inputs, needed, strict=True)
    ]
    with on_device_of(results[0]):
        additive_backward(call, *results, *grads, *found)
    return found
