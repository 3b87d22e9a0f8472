"""What a mechanism (a kind of attention) has to offer to become a pair of operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fused_attention.autocast import without_autocast


class Call(Protocol):
    """A mechanism's NamedTuple of tensors and scalars; each tensor has contiguous rows."""

    def __iter__(self) -> Any: ...

    def empty_results(self) -> tuple[Tensor, ...]:
        """Unwritten results."""


AnyCall = TypeVar("AnyCall", bound=Call)
Grads = Sequence[Tensor | None]


class Backend(Protocol):
    """A module that runs a mechanism. It obeys: checks and choices were made above it."""

    @property
    def NAME(self) -> str: ...  # noqa: N802

    @property
    def DEVICE_TYPES(self) -> tuple[str, ...]: ...  # noqa: N802  # made for these; empty: for any

    def why_not(self, problem: Any) -> list[str]:
        """Every reason why this backend cannot run `problem`; empty if it can."""

    def forward(self, call: Any) -> tuple[Tensor, ...]:
        """The results, laid out as `call.empty_results()`."""

    def backward(
        self, call: Any, grads: Grads, results: Sequence[Tensor], needed: Sequence[bool]
    ) -> Grads:
        """Gradients of the mechanism's differentiable tensors, laid out as torch.empty_like.

        Args:
            call: the forward's call.
            grads: of each result; only those behind the first may be None, which is zero.
            results: of the forward, or of a merge of several.
            needed: which gradients are; None may be returned for the others.
        """


class Formulas(NamedTuple, Generic[AnyCall]):
    """A mechanism as formulas of plain torch operations: the definition of its results.

    They run on every device and in every dtype, and torch can differentiate them in every mode.
    That makes them a backend too, which stands last and takes what the others refuse.
    """

    results: Callable[[AnyCall], tuple[Tensor, ...]]
    gradients: Callable[[AnyCall, Grads, Sequence[Tensor]], Grads]
    differentiable: tuple[str, ...]  # the fields of the Call that have gradients, in their order
    NAME: str = "reference"
    DEVICE_TYPES: tuple[str, ...] = ()

    def why_not(self, problem: Any) -> list[str]:
        return []

    def forward(self, call: AnyCall) -> tuple[Tensor, ...]:
        empty = call.empty_results()
        with without_autocast(empty[0].device.type):
            found = self.results(call)
        return tuple(to.copy_(result) for to, result in zip(empty, found, strict=True))

    def backward(
        self, call: AnyCall, grads: Grads, results: Sequence[Tensor], needed: Sequence[bool]
    ) -> Grads:
        with without_autocast(results[0].device.type):
            found = self.gradients(call, grads, results)
        inputs = [getattr(call, name) for name in self.differentiable]
        return [
            None if grad is None else torch.empty_like(tensor).copy_(grad)
            for grad, tensor in zip(found, inputs, strict=True)
        ]
