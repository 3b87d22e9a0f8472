"""The C++ kernels of csrc/cpu: every feature, every dtype, forward and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention import _ext
from fused_attention.backends.call import Call, DecodeCall, Gradients, sink_gradient

if TYPE_CHECKING:
    from fused_attention.decode_problem import DecodeProblem
    from fused_attention.masks import Band
    from fused_attention.problem import Problem

NAME = "cpu"
DEVICE_TYPES = ("cpu",)
MAX_HEAD_DIM = 512


def why_not(problem: Problem | DecodeProblem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    reasons = no_kernel_for(problem.device_type)
    widest = max(problem.head_dim, problem.value_dim)
    if widest > MAX_HEAD_DIM:
        reasons.append(f"head and value dims go up to {MAX_HEAD_DIM}, got {widest}")
    return reasons


def no_kernel_for(device_type: str) -> list[str]:
    """Why no kernel of csrc/cpu runs here, or on such a device."""
    unavailable = _ext.cpu_unavailable()
    reasons = [] if unavailable is None else [unavailable]
    if device_type != "cpu":
        reasons.append(f"runs on CPU tensors, got {device_type}")
    return reasons


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    band: Band,
    scale: float | None,
    backward_follows: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """(out, lse) of a call that has nothing but these arguments, or None: ask the long way.

    One operator checks the arguments, makes the results and runs the kernel. For a few tokens that
    takes less time than the checks alone take in Python.
    """
    if _ext.cpu_unavailable() is not None:
        return None
    scalars = (scale, band.left, band.right, band.offset, _ext.cpu_isa(), backward_follows)
    try:
        results: tuple[Tensor, Tensor]
        results = torch.ops.fused_attention.cpu_attention.default(query, key, value, *scalars)
    except RuntimeError:  # dtypes, devices, shapes, strides that it does not take
        return None
    return results


def attention_gradients(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    operands: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    band: Band,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, the operands of such a call; layouts as in `backward`."""
    grads: tuple[Tensor, Tensor, Tensor]
    grads = torch.ops.fused_attention.cpu_attention_backward.default(
        *(grad_out, grad_lse, *operands, *results),
        *(scale, band.left, band.right, band.offset, _ext.cpu_isa()),
    )
    return grads


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """(out, lse) of one call; see Call for shapes."""
    arguments = _arguments(call)  # first of all: this loads the operators
    out, lse = call.empty_out(), call.empty_lse()
    sinks = call.sinks
    backward_follows = (
        call.query.requires_grad
        or call.key.requires_grad
        or call.value.requires_grad
        or (sinks is not None and sinks.requires_grad)
    )
    torch.ops.fused_attention.cpu_forward.default(*arguments, backward_follows, out, lse)
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
    grad_query = torch.empty_like(call.query)
    grad_key, grad_value = torch.empty_like(call.key), torch.empty_like(call.value)
    grad_bias = torch.empty_like(call.bias) if needs_bias_grad and call.bias is not None else None
    delta = torch.empty_like(lse)
    torch.ops.fused_attention.cpu_backward.default(
        *arguments,
        out,
        lse,
        grad_out,
        grad_lse,
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
