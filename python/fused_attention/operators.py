"""A mechanism's two operators, and how they behave under torch's transforms.

    fused_attention::<name>_forward(<fields of its Call>, backend) -> results
    fused_attention::<name>_backward(<gradients of the results>, <tensors of the Call>, <results>,
                                     <scalars of the Call>, needed, backend) -> gradients

The Call is a NamedTuple: tensors first, the schemas are made of its annotations. backward is
forward's derivative; its own, forward mode, and what is derived again are those of the formulas,
whose variables are all tensors, the results among them, so that double backward is exact.
torch.vmap runs the operators row by row. attention() has its own pair in autograd.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, get_type_hints

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction

from fused_attention.autocast import without_autocast
from fused_attention.batching import row_contiguous
from fused_attention.forward_mode import has_tangent, wants_gradient
from fused_attention.mechanism import AnyCall, Backend, Formulas, Grads
from fused_attention.selection import named
from fused_attention.shortcut import transforms_active, watched
from fused_attention.transforms import one_level_down, second_gradients

_SCHEMAS = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
}


class OperatorPair(Generic[AnyCall]):
    """Defines the two operators of one mechanism; calling it runs forward, with its gradient."""

    def __init__(
        self,
        name: str,
        call: type[AnyCall],
        *,
        backends: Sequence[Backend],
        formulas: Formulas[AnyCall],
        check_values: Callable[[AnyCall], None] = lambda call: None,
        results: Sequence[str] = ("out", "lse"),
    ) -> None:
        """Register everything.

        Args:
            name: of the mechanism.
            call: the NamedTuple; its fields must be tensors first, then numbers.
            backends: every backend, the formulas among them.
            formulas: those of the double backward and of forward mode; they say what has gradients.
            check_values: checks numbers inside tensors; runs in the operator.
            results: what forward's results are called.
        """
        hints = get_type_hints(call)
        fields = [f"{_SCHEMAS[hints[field]]} {field}" for field in call._fields]  # type: ignore
        self.call, self.backends, self.formulas = call, tuple(backends), formulas
        self.check_values = check_values
        self.tensors = sum(field.startswith("Tensor") for field in fields)
        self.results = len(results)
        self.differentiable = [list(hints).index(field) for field in formulas.differentiable]
        tensors, scalars = fields[: self.tensors], fields[self.tensors :]
        grads = [f"Tensor{'?' if index else ''} grad_{x}" for index, x in enumerate(results)]
        saved = [f"Tensor {result}" for result in results]
        rest = [*scalars, "bool[] needed", "str backend"]
        self._library = torch.library.Library("fused_attention", "FRAGMENT")
        self._define(f"{name}_forward", [*fields, "str backend"], results)
        self._define(f"{name}_backward", [*grads, *tensors, *saved, *rest], formulas.differentiable)
        self.forward_op = getattr(torch.ops.fused_attention, f"{name}_forward").default
        self.backward_op = getattr(torch.ops.fused_attention, f"{name}_backward").default
        self._implement(self.forward_op, self._forward, self._fake_forward, _Forward)
        self._implement(self.backward_op, self._backward, self._fake_backward, _Backward)

    def __call__(self, call: AnyCall, backend: str, needs_grad: bool) -> tuple[Tensor, ...]:
        """The results by the backend of this name; saves nothing without `needs_grad`."""
        args = (*call, backend)
        results: tuple[Tensor, ...]
        if torch.compiler.is_compiling() or transforms_active():
            results = self.forward_op(*args)
        elif needs_grad:  # what the operator does, without a second way through the dispatcher
            results = _Forward.apply(self, *args)  # type: ignore[attr-defined]
        else:
            results = self.below_autograd(self.forward_op, args)
        return results

    def split_backward(
        self, args: Sequence[Any]
    ) -> tuple[Grads, AnyCall, Sequence[Tensor], Sequence[bool], str]:
        """The arguments of backward as gradients, call, results, needed, backend."""
        first, last = self.results, self.results + self.tensors
        end = last + self.results
        call = self.call(*args[first:last], *args[end:-2])
        return args[:first], call, args[last:end], args[-2], args[-1]

    def join_backward(
        self, grads: Grads, args: Sequence[Any], results: Sequence[Tensor], needed: Sequence[bool]
    ) -> tuple[Any, ...]:
        """The arguments of backward, of those of forward and what else belongs to them."""
        tensors, scalars, backend = args[: self.tensors], args[self.tensors : -1], args[-1]
        return (*grads, *tensors, *results, *scalars, list(needed), backend)

    def below_autograd(self, op: Any, args: Sequence[Any]) -> Any:
        """The operator, or its body at once; symbolic sizes come with tensors of their own kind."""
        tensors = args[: self.tensors]
        with torch._C._AutoDispatchBelowAutograd():
            if watched(tensors) or any(map(_batched, tensors)):
                return op(*args)
            return self._forward(*args) if op is self.forward_op else self._backward(*args)

    def dual(self, op: Any, args: Sequence[Any]) -> Sequence[Any]:
        """The operator on dual numbers: the formulas, which torch differentiates."""
        with without_autocast(args[0].device.type):
            if op is self.forward_op:
                return self.formulas.results(self.call(*args[:-1]))
            grads, call, results, needed, _ = self.split_backward(args)
            found = self.formulas.gradients(call, grads, results)
        return self._complete(found, needed, results[0])

    def _forward(self, *args: Any) -> tuple[Tensor, ...]:
        call = self.call(*args[:-1])
        self.check_values(call)
        return named(args[-1], self.backends).forward(call)

    def _backward(self, *args: Any) -> tuple[Tensor, ...]:
        grads, call, results, needed, backend = self.split_backward(args)
        # Autograd hands on gradients of any layout: that of out.sum() is one expanded number.
        grads = [None if grad is None else row_contiguous(grad) for grad in grads]
        results = [row_contiguous(result) for result in results]
        found = named(backend, self.backends).backward(call, grads, results, needed)
        return self._complete(found, needed, results[0])

    def _fake_forward(self, *args: Any) -> tuple[Tensor, ...]:
        return self.call(*args[:-1]).empty_results()

    def _fake_backward(self, *args: Any) -> tuple[Tensor, ...]:
        _, call, results, needed, _ = self.split_backward(args)
        inputs = list(call)
        found = [
            None if inputs[index] is None else torch.empty_like(inputs[index])
            for index in self.differentiable
        ]
        return self._complete(found, needed, results[0])

    @staticmethod
    def _complete(found: Grads, needed: Sequence[bool], like: Tensor) -> tuple[Tensor, ...]:
        """Operators return tensors: an empty one is a gradient that nobody needs."""
        return tuple(
            like.new_empty(0) if grad is None or not asked else grad
            for grad, asked in zip(found, needed, strict=True)
        )

    def _define(self, name: str, arguments: Sequence[str], results: Sequence[str]) -> None:
        returns = ", ".join(f"Tensor {result}" for result in results)
        self._library.define(f"{name}({', '.join(arguments)}) -> ({returns})")

    def _implement(self, op: Any, body: Any, fake: Any, function: Any) -> None:
        """Bodies, fakes and the kernel for the Autograd key; why it is ours, autograd.py says."""

        def autograd(*args: Any) -> Any:
            if has_tangent(args):
                return self.dual(op, args)
            if wants_gradient(args):
                # Inside torch.func this runs for one level of its transforms at a time.
                with enable_single_level_autograd_function():
                    return function.apply(self, *args)
            return self.below_autograd(op, args)

        name = op.name().split("::")[1].split(".")[0]
        self._library.impl(name, body, "CompositeExplicitAutograd")
        self._library.impl(name, autograd, "Autograd")
        torch.library.register_fake(f"fused_attention::{name}", fake, lib=self._library)


def _batched(tensor: Tensor | None) -> bool:
    """Whether torch.autograd.grad(is_grads_batched=True) made it, which no transform shows."""
    return tensor is not None and torch._C._functorch.is_legacy_batchedtensor(tensor)


class _Forward(_SingleLevelFunction):
    """A forward operator with its gradient."""

    @staticmethod
    def forward(ctx: Any, pair: OperatorPair[Any], *args: Any) -> tuple[Tensor, ...]:
        with one_level_down():
            results: tuple[Tensor, ...] = pair.below_autograd(pair.forward_op, args)
        ctx.pair, ctx.scalars = pair, args[pair.tensors :]
        ctx.save_for_backward(*args[: pair.tensors], *results)
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        pair, wanted = ctx.pair, ctx.needs_input_grad[1:]
        tensors, results = ctx.saved_tensors[: pair.tensors], ctx.saved_tensors[pair.tensors :]
        first = torch.zeros_like(results[0]) if grads[0] is None else grads[0]
        needed = [wanted[index] for index in pair.differentiable]
        args = (first, *grads[1:]), (*tensors, *ctx.scalars), results, needed
        if torch.is_grad_enabled() or transforms_active():
            found = pair.backward_op(*pair.join_backward(*args))
        else:
            found = pair.below_autograd(pair.backward_op, pair.join_backward(*args))
        inputs: list[Tensor | None] = [None] * len(wanted)
        for index, asked, grad in zip(pair.differentiable, needed, found, strict=True):
            inputs[index] = grad if asked else None
        return None, *inputs


class _Backward(_SingleLevelFunction):
    """A backward operator with the double backward."""

    @staticmethod
    def forward(ctx: Any, pair: OperatorPair[Any], *args: Any) -> tuple[Tensor, ...]:
        with one_level_down():
            found: tuple[Tensor, ...] = pair.below_autograd(pair.backward_op, args)
        tensors = pair.tensors + 2 * pair.results
        ctx.pair, ctx.scalars = pair, args[tensors:]
        ctx.mark_non_differentiable(*(grad for grad in found if grad.shape == (0,)))
        ctx.save_for_backward(*args[:tensors])
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        pair = ctx.pair

        def formula(*tensors: Tensor) -> Grads:
            grads, call, results, _, _ = pair.split_backward((*tensors, *ctx.scalars))
            found: Grads = pair.formulas.gradients(call, grads, results)
            return found

        wanted = ctx.needs_input_grad[1:]
        return None, *second_gradients(formula, ctx.saved_tensors, wanted, cotangents)
