"""What happens to the numbers of a weight between a checkpoint and a model, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Conversion(Protocol):
    """Turns the tensors of a checkpoint into those of a model, and back.

    `save(load(theirs))` gives `theirs` again, bit by bit. Both also run on the meta device, where
    they tell shapes.
    """

    def load(self, theirs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The checkpoint's tensors as the model's."""
        ...

    def save(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        """The model's tensors as the checkpoint's."""
        ...


@dataclass(frozen=True)
class Same:
    """The same tensors under other names."""

    def load(self, theirs: Sequence[Tensor]) -> Sequence[Tensor]:
        return theirs

    def save(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        return ours


@dataclass(frozen=True)
class Transposed:
    """[in, out] (GPT-2's Conv1D, TensorFlow) against nn.Linear's [out, in]."""

    def load(self, theirs: Sequence[Tensor]) -> Sequence[Tensor]:
        return [tensor.mT for tensor in theirs]

    save = load


@dataclass(frozen=True)
class Stacked:
    """Several tensors of the checkpoint are one of the model, one below the other.

    Attributes:
        rows: how many rows each of the checkpoint's tensors has.
    """

    rows: tuple[int, ...]

    def load(self, theirs: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.cat(tuple(theirs))]

    def save(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        return _rows(ours[0], self.rows)


@dataclass(frozen=True)
class Unstacked:
    """One tensor of the checkpoint is several of the model, one below the other.

    Attributes:
        rows: how many rows each of the model's tensors has.
    """

    rows: tuple[int, ...]

    def load(self, theirs: Sequence[Tensor]) -> Sequence[Tensor]:
        return _rows(theirs[0], self.rows)

    def save(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.cat(tuple(ours))]


def _rows(tensor: Tensor, rows: tuple[int, ...]) -> Sequence[Tensor]:
    parts: Sequence[Tensor] = tensor.split(rows)
    return parts


SAME = Same()
TRANSPOSED = Transposed()
