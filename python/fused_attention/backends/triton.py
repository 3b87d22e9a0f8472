"""The Triton kernels of triton_kernels/: every feature on GPUs of NVIDIA (sm_80 on) and AMD."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_attention import _ext
from fused_attention.backends.call import Call, DecodeCall, Gradients, sink_gradient

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from fused_attention.decode_problem import DecodeProblem
    from fused_attention.problem import Problem

NAME = "triton"
DEVICE_TYPES = ("cuda",)
MAX_HEAD_DIM = 512
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)
# The smallest tiles of dK and dV at head dims above 256, as compiled for sm_120.
WIDE_BACKWARD_BYTES = 114688


def why_not(problem: Problem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    reasons = decode_why_not(problem)
    if reasons or not problem.needs_grad or max(problem.head_dim, problem.value_dim) <= 256:
        return reasons
    limit = _shared_bytes(problem.device_type)
    if limit < WIDE_BACKWARD_BYTES:
        reasons.append(
            f"gradients at head dims above 256 need {WIDE_BACKWARD_BYTES >> 10} KiB of shared "
            f"memory, this GPU has {limit >> 10}"
        )
    return reasons


def decode_why_not(problem: Problem | DecodeProblem) -> list[str]:
    """The reasons that are the same for a step of decoding, which has no gradients."""
    reasons = no_kernel_for(problem.device_type, problem.dtype)
    widest = max(problem.head_dim, problem.value_dim)
    if widest > MAX_HEAD_DIM:
        reasons.append(f"head and value dims go up to {MAX_HEAD_DIM}, got {widest}")
    return reasons


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """(out, lse) of one call; see Call for shapes."""
    from fused_attention.triton_kernels.forward import attention_forward

    out, lse = call.empty_out(), call.empty_lse()
    with on_device_of(out):
        attention_forward(call, out, lse)
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
    from fused_attention.triton_kernels.backward import attention_backward

    delta = torch.empty_like(lse)
    grads = [torch.empty_like(x) for x in (call.query, call.key, call.value)]
    grad_bias = torch.empty_like(call.bias) if needs_bias_grad and call.bias is not None else None
    with on_device_of(out):
        attention_backward(
            *(call, out, lse, grad_out, grad_lse, delta, *grads, grad_bias),
            deterministic=call.deterministic,
        )
    grad_sinks = None if call.sinks is None else sink_gradient(call, lse, delta)
    return Gradients(grads[0], grads[1], grads[2], grad_bias, grad_sinks)


def jvp(call: Call, tangents: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, lse, out_tangent, lse_tangent): forward mode in one pass, see ForwardMode."""
    from fused_attention.triton_kernels.jvp import attention_jvp

    out, lse = call.empty_out(), call.empty_lse()
    out_tangent, lse_tangent = call.empty_out(), call.empty_lse()
    with on_device_of(out):
        attention_jvp(call, tangents, out, lse, out_tangent, lse_tangent)
    return out, lse, out_tangent, lse_tangent


def decode(call: DecodeCall) -> tuple[Tensor, Tensor]:
    """(out, lse) of one step of decoding; new keys and values are stored in the caches."""
    from fused_attention.triton_kernels.decode import attention_decode

    out, lse = call.empty_out(), call.empty_lse()
    with on_device_of(out):
        attention_decode(call, out, lse)
    return out, lse


def no_kernel_for(device_type: str, dtype: torch.dtype) -> list[str]:
    """Why no kernel of triton_kernels runs on such a device, or with operands of this dtype."""
    reasons = list(unavailable(device_type))
    if dtype not in DTYPES:
        reasons.append(f"computes in fp16, bf16 and fp32, got {dtype}".replace("torch.", ""))
    if device_type == "cpu" and dtype == torch.bfloat16 and not reasons:
        reasons += _interpreter_errors()
    return reasons


def unavailable(device_type: str) -> tuple[str, ...]:
    """Why the kernels cannot run on such a device; empty if they can. Never initialises CUDA."""
    if device_type == "cpu":
        return _import_errors() if _interpreted() else ("runs on CUDA tensors, got cpu",)
    reasons = [*_import_errors(), *_ext.gpu_missing()]
    if device_type != "cuda":
        reasons.append(f"runs on CUDA tensors, got {device_type}")
    if not reasons and torch.version.hip is None:
        reasons += _ext.gpu_too_old(OLDEST_CAPABILITY)
    return tuple(reasons)


# As in _ext.py: torch.compile takes the answer as a constant.
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _shared_bytes(device_type: str) -> int:
    """Shared memory that one program can have."""
    from fused_attention.triton_kernels.configs import shared_bytes
    from fused_attention.triton_kernels.launch import arch_of

    limit: int = shared_bytes(arch_of(torch.device(device_type)))
    return limit


_shared_bytes._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _import_errors() -> tuple[str, ...]:
    """Triton is imported when the first problem asks for it, never with the package."""
    try:
        import triton
    except ImportError as error:
        return (f"needs Triton: {error}",)
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return (f"needs Triton {oldest} or newer, got {triton.__version__}",)
    return ()


def _interpreter_errors() -> list[str]:
    """Upstream's interpreter multiplies the bit patterns of bf16; that of the tests does not."""
    from triton.runtime.interpreter import InterpreterBuilder

    if InterpreterBuilder.create_dot.__module__ != InterpreterBuilder.__module__:
        return []
    return ["Triton's interpreter cannot compute in bf16"]


_interpreter_errors._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _interpreted() -> bool:
    """Triton's own switch: kernels run in its interpreter, slowly, which is for tests.

    Triton is not imported to learn that.
    """
    if "triton" in sys.modules:
        return bool(sys.modules["triton"].knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET") == "1"


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()
