"""The layers of a model: what is recomputed, sharded and compiled one by one."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fused_attention.checks import wrong_value


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The members of the model's outermost nn.ModuleLists, in the order of its modules."""
    return list(_layers(model))


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def checkpoint_layers(model: nn.Module) -> None:
    """Let backward recompute each layer instead of keeping its activations (Chen et al. 2016).

    Names of modules and parameters stay as they are; dropout repeats its random numbers.

    Raises:
        ValueError: the model has no layers in an nn.ModuleList.
    """
    layers = layers_of(model)
    if not layers:
        rule = "needs a model with layers in an nn.ModuleList"
        wrong_value("checkpoint_layers", rule, type(model).__name__)
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


class Loss(nn.Module):
    """The loss of a model as a module: DDP, FSDP and torch.compile take hold of `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Tensor:
        loss: Tensor = cast(Any, self.model).loss(**batch)
        return loss
