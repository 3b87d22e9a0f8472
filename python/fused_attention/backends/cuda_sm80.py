"""The CUDA C++ kernels of csrc/cuda for compute capability 8.0 and later: fp16 and bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention import _ext
from fused_attention.backends.call import Call, DecodeCall, Gradients, sink_gradient

if TYPE_CHECKING:
    from fused_attention.decode_problem import DecodeProblem
    from fused_attention.problem import Problem

NAME = "cuda_sm80"
DEVICE_TYPES = ("cuda",)
MAX_HEAD_DIM = 256
DTYPES = (torch.float16, torch.bfloat16)


def why_not(problem: Problem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    reasons = _shared_reasons(problem)
    if problem.bias_shape is not None:
        reasons.append("takes no bias")
    return reasons


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """(out, lse) of one call; see Call for shapes."""
    out, lse = call.empty_out(), call.empty_lse()
    torch.ops.fused_attention.cuda_sm80_forward(*call[:-1], out, lse)
    return out, lse


def backward(
    call: Call,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    needs_bias_grad: bool,
) -> Gradients:
    """Gradients of one call. `out` and `lse` may be a global merge of several forwards."""
    delta = torch.empty_like(lse)
    grads = [torch.empty_like(x) for x in (call.query, call.key, call.value)]
    arguments = call[:-1]  # always deterministic
    torch.ops.fused_attention.cuda_sm80_backward(
        *arguments, out, lse, grad_out, grad_lse, delta, *grads
    )
    grad_sinks = None if call.sinks is None else sink_gradient(call, lse, delta)
    return Gradients(grads[0], grads[1], grads[2], None, grad_sinks)


def decode_why_not(problem: DecodeProblem) -> list[str]:
    """Reasons why these kernels cannot run a step of decoding; empty when they can."""
    return _shared_reasons(problem)


def decode(call: DecodeCall) -> tuple[Tensor, Tensor]:
    """(out, lse) of one step of decoding; new keys and values are stored in the caches."""
    out, lse = call.empty_out(), call.empty_lse()
    torch.ops.fused_attention.cuda_decode(*call, out, lse)
    return out, lse


def _shared_reasons(problem: Problem | DecodeProblem) -> list[str]:
    reasons = list(_ext.cuda_unavailable())
    if problem.device_type != "cuda":
        reasons.append(f"runs on CUDA tensors, got {problem.device_type}")
    if problem.dtype not in DTYPES:
        reasons.append(f"computes in fp16 and bf16, got {problem.dtype}".replace("torch.", ""))
    widest = max(problem.head_dim, problem.value_dim)
    if widest > MAX_HEAD_DIM:
        reasons.append(f"head and value dims go up to {MAX_HEAD_DIM}, got {widest}")
    return reasons
