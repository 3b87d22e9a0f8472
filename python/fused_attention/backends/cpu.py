"""The C++ kernels of csrc/cpu: every feature, every dtype, forward and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention import _ext
from fused_attention.backends.call import Call, DecodeCall, Gradients, sink_gradient

if TYPE_CHECKING:
    from fused_attention.decode_problem import DecodeProblem
    from fused_attention.problem import Problem

NAME = "cpu"
DEVICE_TYPES = ("cpu",)
MAX_HEAD_DIM = 512
ROW_ALIGN = 16  # csrc/cpu/tiles.h: rows read as vectors are padded to whole vectors


def why_not(problem: Problem | DecodeProblem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    reasons = []
    unavailable = _ext.cpu_unavailable()
    if unavailable is not None:
        reasons.append(unavailable)
    if problem.device_type != "cpu":
        reasons.append(f"runs on CPU tensors, got {problem.device_type}")
    widest = max(problem.head_dim, problem.value_dim)
    if widest > MAX_HEAD_DIM:
        reasons.append(f"head and value dims go up to {MAX_HEAD_DIM}, got {widest}")
    return reasons


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """(out, lse) of one call; see Call for shapes."""
    arguments = _arguments(call)  # first of all: this loads the operators
    out, lse = call.empty_out(), call.empty_lse()
    inputs = (call.query, call.key, call.value, call.sinks)
    backward_follows = any(x is not None and x.requires_grad for x in inputs)
    torch.ops.fused_attention.cpu_forward(*arguments, backward_follows, out, lse)
    return out, lse


def backward(
    call: Call,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    needs_bias_grad: bool,
) -> Gradients:
    """Gradients of one call. `out` and `lse` may be a global merge of several forwards.

    The last dimension of grad_out and out is contiguous, as that of query, key and value.
    """
    arguments = _arguments(call)
    query, key, value = call.query, call.key, call.value
    grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
    grad_bias = torch.empty_like(call.bias) if needs_bias_grad and call.bias is not None else None
    delta = torch.empty_like(lse)
    torch.ops.fused_attention.cpu_backward(
        *arguments,
        out,
        lse,
        grad_out,
        grad_lse,
        _accumulator(key, call.lse_dtype),
        _accumulator(value, call.lse_dtype),
        delta,
        grad_query,
        grad_key,
        grad_value,
        grad_bias,
    )
    grad_sinks = None if call.sinks is None else sink_gradient(call, lse, delta)
    return Gradients(grad_query, grad_key, grad_value, grad_bias, grad_sinks)


decode_why_not = why_not


def decode(call: DecodeCall) -> tuple[Tensor, Tensor]:
    """(out, lse) of one step of decoding; see DecodeCall for shapes."""
    isa = _ext.cpu_isa()  # first of all: this loads the operators
    out, lse = call.empty_out(), call.empty_lse()
    torch.ops.fused_attention.cpu_decode(*call, isa, out, lse)
    return out, lse


def _arguments(call: Call) -> tuple[object, ...]:
    """The arguments of the C++ operators up to the tensors that they write."""
    return (
        *call[:11],
        call.scale,
        call.softcap,
        call.left,
        call.right,
        call.offset,
        call.dropout_p,
        _ext.cpu_isa(),
    )


def _accumulator(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros in which the gradient of a key or value grows: [B, H, L, dim rounded up].

    The heads of packed tensors lie apart ([H, T, dim]), returned as the view [T, H, dim].
    """
    dim = -(-tensor.shape[-1] // ROW_ALIGN) * ROW_ALIGN
    if tensor.dim() == 4:
        return tensor.new_zeros((*tensor.shape[:-1], dim), dtype=dtype)
    total, heads, _ = tensor.shape
    return tensor.new_zeros((heads, total, dim), dtype=dtype).transpose(0, 1)
