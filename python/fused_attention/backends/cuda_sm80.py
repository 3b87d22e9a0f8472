"""The CUDA C++ kernels of csrc/cuda for compute capability 8.0 and later: fp16 and bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention import _ext
from fused_attention.backends.call import Call, Gradients, empty_like_layout, sink_gradient

if TYPE_CHECKING:
    from fused_attention.problem import Problem

NAME = "cuda_sm80"
MAX_HEAD_DIM = 256
ROW_ALIGN = 8  # elements that one 16-byte copy moves: rows start at multiples of it
DTYPES = (torch.float16, torch.bfloat16)


def why_not(problem: Problem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    reasons = list(_ext.cuda_unavailable())
    if problem.device_type != "cuda":
        reasons.append(f"runs on CUDA tensors, got {problem.device_type}")
    if problem.dtype not in DTYPES:
        reasons.append(f"computes in fp16 and bf16, got {problem.dtype}".replace("torch.", ""))
    if problem.head_dim > MAX_HEAD_DIM:
        reasons.append(f"head dims go up to {MAX_HEAD_DIM}, got {problem.head_dim}")
    if problem.value_dim != problem.head_dim:
        dims = f"{problem.value_dim} and {problem.head_dim}"
        reasons.append(f"value and head dims must be equal, got {dims}")
    if problem.bias_shape is not None:
        reasons.append("takes no bias")
    return reasons


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """(out, lse) of one call; see Call for shapes."""
    padded = _aligned_call(call)
    out, lse = padded.empty_out(), padded.empty_lse()
    torch.ops.fused_attention.cuda_sm80_forward(*padded, out, lse)
    return _unpadded(out, call.value.shape[-1]), lse


def backward(
    call: Call,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    needs_bias_grad: bool,
) -> Gradients:
    """Gradients of one call. `out` and `lse` may be a global merge of several forwards."""
    padded = _aligned_call(call)
    delta = torch.empty_like(lse)
    grads = [torch.empty_like(x) for x in (padded.query, padded.key, padded.value)]
    torch.ops.fused_attention.cuda_sm80_backward(
        *padded, _aligned(out), lse, _aligned(grad_out), grad_lse, delta, *grads
    )
    grad_query, grad_key, grad_value = (_unpadded(x, call.query.shape[-1]) for x in grads)
    grad_sinks = None if call.sinks is None else sink_gradient(call, lse, delta)
    return Gradients(grad_query, grad_key, grad_value, None, grad_sinks)


def _aligned_call(call: Call) -> Call:
    query, key, value = (_aligned(x) for x in (call.query, call.key, call.value))
    return call._replace(query=query, key=key, value=value)


def _aligned(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy of it whose rows are whole 16-byte pieces, padded with zeros.

    Zeros at the end of query and key add nothing to a score; those of the value give columns of
    zeros in the output.
    """
    row = tensor.shape[-1]
    steps = [n for size, n in zip(tensor.shape[:-1], tensor.stride(), strict=False) if size > 1]
    in_pieces = all(step % ROW_ALIGN == 0 for step in (row, *steps))
    if in_pieces and tensor.data_ptr() % (ROW_ALIGN * tensor.element_size()) == 0:
        return tensor
    padded = empty_like_layout(tensor, -(-row // ROW_ALIGN) * ROW_ALIGN)
    padded[..., :row].copy_(tensor)
    padded[..., row:].zero_()
    return padded


def _unpadded(tensor: Tensor, row: int) -> Tensor:
    """The first `row` columns, dense."""
    if tensor.shape[-1] == row:
        return tensor
    return empty_like_layout(tensor, row).copy_(tensor[..., :row])
