"""What a training step gets."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Arguments of a model's loss, and how many tokens it is the mean of.

    Batches of different weight, on several processes or accumulated one after the other, then add
    up to the gradient of one large batch.
    """

    inputs: dict[str, Tensor]
    weight: int

    def to(self, device: torch.device) -> Batch:
        moved = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        return Batch(moved, self.weight)


class Batches(Protocol):
    """An endless sequence of batches; the same index always gives the same batch."""

    def __getitem__(self, index: int, /) -> Batch: ...
