"""What the autograd functions of every operator share, under torch.func and without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fused_attention.autocast import without_autocast
from fused_attention.shortcut import transforms_active


@contextmanager
def one_level_down() -> Iterator[None]:
    """Around an operator inside an autograd function, which runs with gradients off.

    That is right for plain tensors; the outer levels of torch.func have yet to record theirs.
    """
    if not torch._C._are_functorch_transforms_active():
        yield
        return
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def second_gradients(
    formula: Callable[..., Sequence[Tensor | None]],
    tensors: Sequence[Tensor | None],
    wanted: Sequence[bool],
    cotangents: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The derivative of a backward operator: that of the formula it computes.

    Args:
        formula: the gradients as differentiable operations on all the tensors.
        tensors: the operator's, variables of their own; None where it has none.
        wanted: for each of the operator's arguments whether its gradient is needed.
        cotangents: for each of the formula's results; None is zero.

    Returns:
        A gradient for each argument, None where none is wanted.
    """
    known = [cotangent for cotangent in cotangents if cotangent is not None]
    pairs = list(zip(tensors, wanted, strict=False))
    variables = [tensor for tensor, needed in pairs if needed and tensor is not None]
    if not known:
        return (None,) * len(wanted)

    def mixed(*values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)
        found = formula(*(next(given) if needed else tensor for tensor, needed in pairs))
        return tuple(
            grad
            for grad, cotangent in zip(found, cotangents, strict=True)
            if cotangent is not None and grad is not None
        )

    with without_autocast(known[0].device.type):
        second = iter(_pull_back(mixed, variables, known))
    return tuple(next(second) if needed else None for needed in wanted)


def _pull_back(
    formula: Callable[..., tuple[Tensor, ...]], variables: list[Tensor], cotangents: list[Tensor]
) -> Sequence[Tensor | None]:
    """The vector-Jacobian product of the formula, as if no variable depended on another."""
    with torch.enable_grad():
        views = [variable.view_as(variable) for variable in variables]
        if transforms_active() or not all(view.requires_grad for view in views):
            # Of a torch.func level, perhaps one that is gone. Not for all: vjp imports Dynamo.
            second: tuple[Tensor, ...] = torch.func.vjp(formula, *variables)[1](tuple(cotangents))
            return second
        outputs = formula(*views)
    pairs = [pair for pair in zip(outputs, cotangents, strict=True) if pair[0].requires_grad]
    return torch.autograd.grad(
        [output for output, _ in pairs],
        views,
        [cotangent for _, cotangent in pairs],
        create_graph=torch.is_grad_enabled(),
        allow_unused=True,
    )
