"""The CUDA C++ kernels of csrc/cuda/additive for compute capability 8.0 and later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention import _ext
from fused_attention.additive.call import AdditiveCall

if TYPE_CHECKING:
    from fused_attention.additive.problem import AdditiveProblem
    from fused_attention.mechanism import Grads

NAME = "cuda_sm80"
DEVICE_TYPES = ("cuda",)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def why_not(problem: AdditiveProblem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    reasons = list(_ext.cuda_unavailable())
    if problem.device_type != "cuda":
        reasons.append(f"runs on CUDA tensors, got {problem.device_type}")
    if problem.dtype not in DTYPES:
        dtype = str(problem.dtype).removeprefix("torch.")
        reasons.append(f"computes in fp32, fp16 and bf16, got {dtype}")
    return reasons


def forward(call: AdditiveCall) -> tuple[Tensor, Tensor]:
    """(out, lse) of one call; see AdditiveCall for shapes."""
    out, lse = call.empty_results()
    torch.ops.fused_attention.cuda_additive_forward(*call, out, lse)
    return out, lse


def backward(
    call: AdditiveCall, grads: Grads, results: Sequence[Tensor], needed: Sequence[bool]
) -> Grads:
    """Gradients of query, key, value and v; one kernel gives those of query and v, one the others.

    The results may be a merge of several forwards.
    """
    query, key, value, v = needed
    tensors = (call.query, call.key, call.value, call.v)
    wanted = (query or v, key or value, key or value, query or v)
    found = [torch.empty_like(x) if want else None for x, want in zip(tensors, wanted, strict=True)]
    torch.ops.fused_attention.cuda_additive_backward(*call, *results, *grads, *found)
    return found
