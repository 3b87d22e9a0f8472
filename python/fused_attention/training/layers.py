"""The layers of a model: what is recomputed, sharded and compiled one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from fused_attention.checks import wrong_value
from fused_attention.nn.block import Block


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
    """Let backward recompute each block instead of keeping its activations (Chen et al. 2016).

    Raises:
        ValueError: the model has no blocks.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks:
        wrong_value("checkpoint_layers", "needs a model of nn.Block layers", type(model).__name__)
    for block in blocks:
        block.checkpointing = True


class Loss(nn.Module):
    """The loss of a model as a module: DDP, FSDP and torch.compile take hold of `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor | int) -> Tensor:
        loss: Tensor = cast(Any, self.model).loss(**batch)
        return loss
