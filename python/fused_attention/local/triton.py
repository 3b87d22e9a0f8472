"""The Triton kernels of local attention, forward and backward, on GPUs of NVIDIA and AMD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention.backends.triton import DEVICE_TYPES, NAME, no_kernel_for, on_device_of
from fused_attention.local.call import LocalCall, LocalGradients

if TYPE_CHECKING:
    from fused_attention.local.problem import LocalProblem

__all__ = ["DEVICE_TYPES", "NAME", "backward", "forward", "why_not"]


def why_not(problem: LocalProblem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    return no_kernel_for(problem.device_type, problem.dtype)


def forward(call: LocalCall) -> tuple[Tensor, Tensor]:
    """out and lse of one call; see LocalCall for shapes."""
    from fused_attention.triton_kernels.local import local_forward

    out, lse = call.empty_results()
    with on_device_of(out):
        local_forward(call, out, lse)
    return out, lse


def backward(
    call: LocalCall,
    grads: Sequence[Tensor | None],
    results: Sequence[Tensor],
    needed: Sequence[bool],
) -> LocalGradients:
    """Gradients of one call; each result's and its gradient's last dimension is contiguous."""
    from fused_attention.triton_kernels.local_backward import local_backward

    found = LocalGradients(
        torch.empty_like(call.query),
        torch.empty_like(call.key),
        torch.empty_like(call.value),
        torch.empty_like(call.position),
        None if call.sigma is None else torch.empty_like(call.sigma),
    )
    with on_device_of(results[0]):
        local_backward(call, *results, *grads, *found)
    return found
