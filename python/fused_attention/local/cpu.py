"""The C++ kernels of csrc/cpu/local: every dtype, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention import _ext
from fused_attention.backends.cpu import DEVICE_TYPES, NAME, no_kernel_for
from fused_attention.local.call import LocalCall, LocalGradients

if TYPE_CHECKING:
    from fused_attention.local.problem import LocalProblem

__all__ = ["DEVICE_TYPES", "NAME", "backward", "forward", "why_not"]


def why_not(problem: LocalProblem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    return no_kernel_for(problem.device_type)


def forward(call: LocalCall) -> tuple[Tensor, Tensor]:
    """out and lse of one call; see LocalCall for shapes."""
    isa = _ext.cpu_isa()  # first of all: this loads the operators
    out, lse = call.empty_results()
    torch.ops.fused_attention.cpu_local_forward.default(*call, isa, out, lse)
    return out, lse


def backward(
    call: LocalCall,
    grads: Sequence[Tensor | None],
    results: Sequence[Tensor],
    needed: Sequence[bool],
) -> LocalGradients:
    """Gradients of one call; each result's and its gradient's last dimension is contiguous."""
    isa = _ext.cpu_isa()
    found = LocalGradients(
        torch.empty_like(call.query),
        torch.empty_like(call.key),
        torch.empty_like(call.value),
        torch.empty_like(call.position),
        None if call.sigma is None else torch.empty_like(call.sigma),
    )
    delta = torch.empty_like(call.position)
    torch.ops.fused_attention.cpu_local_backward.default(
        *call, isa, *results, *grads, delta, *found
    )
    return found
