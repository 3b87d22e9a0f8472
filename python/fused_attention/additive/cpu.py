"""The C++ kernels of csrc/cpu/additive: every dtype, forward and backward, deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention import _ext
from fused_attention.additive.call import AdditiveCall
from fused_attention.backends.cpu import DEVICE_TYPES, NAME, no_kernel_for

if TYPE_CHECKING:
    from fused_attention.additive.problem import AdditiveProblem
    from fused_attention.mechanism import Grads

__all__ = ["DEVICE_TYPES", "NAME", "backward", "forward", "why_not"]


def why_not(problem: AdditiveProblem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    return no_kernel_for(problem.device_type)


def forward(call: AdditiveCall) -> tuple[Tensor, Tensor]:
    """(out, lse) of one call; see AdditiveCall for shapes."""
    isa = _ext.cpu_isa()  # first of all: this loads the operators
    out, lse = call.empty_results()
    torch.ops.fused_attention.cpu_additive_forward.default(*call, isa, out, lse)
    return out, lse


def backward(
    call: AdditiveCall, grads: Grads, results: Sequence[Tensor], needed: Sequence[bool]
) -> Grads:
    """Gradients of query, key, value and v. The results may be a merge of several forwards."""
    isa = _ext.cpu_isa()
    out, lse = results
    grad_out, grad_lse = grads
    inputs = (call.query, call.key, call.value, call.v)
    found = [
        torch.empty_like(tensor) if wanted else None
        for tensor, wanted in zip(inputs, needed, strict=True)
    ]
    torch.ops.fused_attention.cpu_additive_backward.default(
        *call, isa, out, lse, grad_out, grad_lse, *found
    )
    return found
