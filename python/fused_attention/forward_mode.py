"""Forward-mode differentiation: the operator that follows a direction, and dual numbers above it.

    fused_attention::jvp(<tensors>, <tangents>, <scalars>, backend)
        -> (out, lse, out_tangent, lse_tangent)

in one pass over the keys where the backend has a kernel for it, elsewhere by the formula. What is
to be differentiated again, in whichever mode, is always computed by the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fused_attention.autocast import without_autocast
from fused_attention.backends import forward_mode_of, reference
from fused_attention.backends.call import Call
from fused_attention.batching import jvp_rule, row_contiguous
from fused_attention.checks import check_values
from fused_attention.signature import (
    DIFFERENTIABLE,
    SCALARS,
    TENSORS,
    join_jvp,
    split_backward,
    split_jvp,
)

_TANGENTS = ", ".join(
    f"Tensor? {name}_tangent" for name in ("query", "key", "value", "bias", "sinks")
)
_library = torch.library.Library("fused_attention", "FRAGMENT")
_library.define(
    f"jvp({TENSORS}, {_TANGENTS}, {SCALARS}) -> "
    "(Tensor out, Tensor lse, Tensor out_tangent, Tensor lse_tangent)"
)
jvp_op = torch.ops.fused_attention.jvp.default


def has_tangent(args: Sequence[Any]) -> bool:
    """Whether any tensor is a dual number here."""
    return forward_ad._current_level >= 0 and any(
        isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None for arg in args
    )


def dual_forward(forward: Callable[..., Any], args: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """fused_attention::forward on dual numbers; `forward` is it on plain ones, with gradients."""
    primals, tangents = zip(*map(_split_dual, args), strict=True)
    directions = [tangents[index] for index in DIFFERENTIABLE]
    *call, backend = primals
    jvp_args = join_jvp(Call(*call), directions, backend)
    out, lse, out_tangent, lse_tangent = jvp_op(*jvp_args)
    if wants_gradient((*primals, *directions)):
        out, lse = forward(*primals)
    return forward_ad.make_dual(out, out_tangent), forward_ad.make_dual(lse, lse_tangent)


def dual_backward(args: Sequence[Any]) -> tuple[Tensor, ...]:
    """fused_attention::backward on dual numbers: the formula, which torch differentiates."""
    grads, call, results, (_, bias_grad) = split_backward(args)
    with without_autocast(call.query.device.type):
        found = reference.differentiable_backward(grads, call, results)
    nothing = call.query.new_empty(0)
    return (
        *found[:3],
        found.bias if found.bias is not None and bias_grad else nothing,
        nothing if found.sinks is None else found.sinks,
    )


def wants_gradient(args: Sequence[Any]) -> bool:
    """Whether reverse mode has to be able to come back to any of the tensors."""
    return torch.is_grad_enabled() and any(
        isinstance(arg, Tensor) and arg.requires_grad for arg in args
    )


def _split_dual(arg: Any) -> tuple[Any, Tensor | None]:
    if not isinstance(arg, Tensor):
        return arg, None
    primal, tangent = forward_ad.unpack_dual(arg)
    return primal, tangent


def _jvp(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call, tangents, backend = split_jvp(args)
    check_values(call)
    directions = [None if tangent is None else row_contiguous(tangent) for tangent in tangents]
    return forward_mode_of(backend).jvp(call, directions)


def _jvp_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call, _, _ = split_jvp(args)
    return call.empty_out(), call.empty_lse(), call.empty_out(), call.empty_lse()


def _jvp_autograd(*args: Any) -> Any:
    if has_tangent(args) or wants_gradient(args):
        call, tangents, _ = split_jvp(args)
        return reference.differentiable_jvp(call, tangents)
    with torch._C._AutoDispatchBelowAutograd():
        return jvp_op(*args)


_library.impl("jvp", _jvp, "CompositeExplicitAutograd")
_library.impl("jvp", _jvp_autograd, "Autograd")
torch.library.register_fake("fused_attention::jvp", _jvp_fake, lib=_library)
torch.library.register_vmap("fused_attention::jvp", jvp_rule(jvp_op), lib=_library)
