"""The two operators of the package, and how they behave under torch's transforms.

    fused_attention::forward(<tensors>, <scalars>, backend) -> (out, lse)
    fused_attention::backward(grad_out, grad_lse, <tensors>, out, lse, <scalars>, backend,
                              bias_grad) -> (dq, dk, dv, dbias, dsinks)

<tensors> and <scalars> are the fields of Call. Which backend runs is an argument. backward is
forward's derivative; its own is that of the formulas in reference.py, with out and lse as
variables, so that double backward is exact. `lse` is differentiable like `out`. Forward mode
stands in forward_mode.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction

from fused_attention.backends import get, reference
from fused_attention.backends.call import Call, Gradients
from fused_attention.batching import backward_rule, forward_rule, row_contiguous
from fused_attention.checks import check_values
from fused_attention.forward_mode import dual_backward, dual_forward, has_tangent, wants_gradient
from fused_attention.shortcut import transforms_active, watched
from fused_attention.signature import (
    BACKWARD_TENSORS,
    BIAS,
    DIFFERENTIABLE,
    FORWARD_TENSORS,
    SCALARS,
    TENSORS,
    join_backward,
    split_backward,
)
from fused_attention.transforms import one_level_down, second_gradients

# Raw definitions: torch.library.custom_op costs several microseconds more per call.
_library = torch.library.Library("fused_attention", "FRAGMENT")
_library.define(f"forward({TENSORS}, {SCALARS}) -> (Tensor out, Tensor lse)")
_library.define(
    f"backward(Tensor grad_out, Tensor? grad_lse, {TENSORS}, Tensor out, Tensor lse, {SCALARS}, "
    "bool bias_grad) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsinks)"
)
forward_op = torch.ops.fused_attention.forward.default
backward_op = torch.ops.fused_attention.backward.default


def attend(call: Call, backend: str, needs_grad: bool) -> tuple[Tensor, Tensor]:
    """out and lse of one call by the backend of this name; saves nothing without `needs_grad`."""
    args = (*call, backend)
    results: tuple[Tensor, Tensor]
    if torch.compiler.is_compiling() or transforms_active():
        results = forward_op(*args)
    elif needs_grad:  # what the operator does, without a second way through the dispatcher
        results = _Forward.apply(*args)  # type: ignore[attr-defined]
    else:
        results = _below_autograd(forward_op, args)
    return results


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    call = Call(*args[:-1])
    check_values(call)
    return get(args[-1]).forward(call)


def _backward(*args: Any) -> tuple[Tensor, ...]:
    parts = split_backward(args)
    grads, empty = _gradients(*parts), parts[1].query.new_empty
    return (
        *grads[:3],
        empty(0) if grads.bias is None else grads.bias,
        empty(0) if grads.sinks is None else grads.sinks,
    )


def _gradients(
    grads: Sequence[Any], call: Call, results: Sequence[Any], rest: Sequence[Any]
) -> Gradients:
    """What the backend says, of the parts that `split_backward` gives."""
    (grad_out, grad_lse), (out, lse), (backend, bias_grad) = grads, results, rest
    # Autograd hands on gradients of any layout: that of out.sum() is one expanded number.
    return get(backend).backward(
        call,
        row_contiguous(grad_out),
        None if grad_lse is None else grad_lse.contiguous(),
        row_contiguous(out),
        lse.contiguous(),
        bias_grad,
    )


_BODIES = {forward_op: _forward, backward_op: _backward}


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = Call(*args[:-1])
    return call.empty_out(), call.empty_lse()


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    _, call, _, (_, bias_grad) = split_backward(args)
    bias = call.bias if bias_grad else None
    return tuple(
        call.query.new_empty(0) if tensor is None else torch.empty_like(tensor)
        for tensor in (call.query, call.key, call.value, bias, call.sinks)
    )


class _Forward(_SingleLevelFunction):
    """fused_attention::forward with its gradient."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        with one_level_down():
            out, lse = _below_autograd(forward_op, args)
        ctx.save_for_backward(*args[:FORWARD_TENSORS], out, lse)
        ctx.scalars = args[FORWARD_TENSORS:]
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        grads: list[Tensor | None] = [None] * len(needed)
        *tensors, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        *scalars, backend = ctx.scalars
        call, bias_grad = Call(*tensors, *scalars), needed[BIAS]
        parts = (grad_out, grad_lse), call, (out, lse), (backend, bias_grad)
        found = gradients(*parts)
        for index, grad in zip(DIFFERENTIABLE, found, strict=True):
            if needed[index]:
                grads[index] = grad
        return tuple(grads)


class _Backward(_SingleLevelFunction):
    """fused_attention::backward with the double backward."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        with one_level_down():
            results: tuple[Tensor, ...] = _below_autograd(backward_op, args)
        ctx.mark_non_differentiable(*(result for result in results if result.shape == (0,)))
        ctx.save_for_backward(*args[:BACKWARD_TENSORS])
        ctx.scalars = args[BACKWARD_TENSORS:]
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        def formula(*tensors: Tensor) -> Sequence[Tensor | None]:
            grads, call, results, _ = split_backward([*tensors, *ctx.scalars])
            return reference.differentiable_backward(grads, call, results)

        return second_gradients(formula, ctx.saved_tensors, ctx.needs_input_grad, cotangents)


def gradients(grads: Any, call: Call, results: Any, rest: Any) -> Sequence[Any]:
    """Gradients in the order of DIFFERENTIABLE, of the parts that `split_backward` gives.

    Differentiable where gradients are enabled.
    """
    if torch.is_grad_enabled() or transforms_active():
        found: Sequence[Any] = backward_op(*join_backward(grads, call, results, rest))
        return found
    with torch._C._AutoDispatchBelowAutograd():
        if watched((*grads, *call, *results)):
            found = backward_op(*join_backward(grads, call, results, rest))
            return found
        return _gradients(grads, call, results, rest)


def _below_autograd(op: Any, args: Sequence[Any]) -> Any:
    """The operator, or its body at once."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args) if watched(args) else _BODIES[op](*args)


def _autograd_kernel(function: Any, op: Any) -> Callable[..., Any]:
    """The operator's kernel for the Autograd key.

    torch.library.register_autograd would do, but for three things: each call with gradients costs
    200 us more for this many arguments, torch.func.grad fails, and forward-mode tangents vanish.
    """

    def plain(*args: Any) -> Any:
        if wants_gradient(args):
            # Inside torch.func this kernel runs for one level of its transforms at a time.
            with enable_single_level_autograd_function():
                return function.apply(*args)
        return _below_autograd(op, args)

    def kernel(*args: Any) -> Any:
        if not has_tangent(args):
            return plain(*args)
        return dual_forward(plain, args) if function is _Forward else dual_backward(args)

    return kernel


for _name, _op, _body, _fake, _function, _rule in (
    ("forward", forward_op, _forward, _forward_fake, _Forward, forward_rule),
    ("backward", backward_op, _backward, _backward_fake, _Backward, backward_rule),
):
    _library.impl(_name, _body, "CompositeExplicitAutograd")
    _library.impl(_name, _autograd_kernel(_function, _op), "Autograd")
    torch.library.register_fake(f"fused_attention::{_name}", _fake, lib=_library)
    torch.library.register_vmap(f"fused_attention::{_name}", _rule(_op), lib=_library)
