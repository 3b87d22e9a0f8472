"""Mapping tables: which weight of a checkpoint is which weight of a model.

A table is read in both directions, so what loads can also be saved, and nothing is left out in
silence: a weight that is missing, unknown or of another shape is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_attention.models.weights.conversions import SAME, Conversion

NAMED = 5  # names of each kind that an error lists


@dataclass(frozen=True)
class Entry:
    """Weights of the model that are made of weights of the checkpoint, and nothing else.

    Attributes:
        ours: names in the model.
        theirs: names in the checkpoint.
        conversion: what turns the ones into the others.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    conversion: Conversion = SAME


@dataclass(frozen=True)
class Table:
    """All weights of a family of checkpoints.

    Attributes:
        entries: every weight of the model stands in exactly one of them.
        copies: names in the checkpoint that repeat another name of it (tied weights). They may be
            absent, must be equal to it if they are there, and are not written.
        older: (pattern, replacement): what other versions of the family call a weight, as today's
            name; applied in order, as re.sub does.
        ignored: patterns of names, from their beginning on, that hold nothing to load.
    """

    entries: tuple[Entry, ...]
    copies: Mapping[str, str] | None = None
    older: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def names(self) -> set[str]:
        """What the weights are called in the checkpoint, copies too."""
        return {name for entry in self.entries for name in entry.theirs} | set(self.copies or ())

    def todays_name(self, name: str) -> str:
        """The name in the table of what a checkpoint calls `name`."""
        for pattern, replacement in self.older:
            name = re.sub(pattern, replacement, name)
        return name

    def ignores(self, name: str) -> bool:
        return any(re.match(pattern, name) for pattern in self.ignored)


def module(
    ours: str,
    theirs: str | Sequence[str],
    conversion: Conversion = SAME,
    *,
    bias: bool = True,
    weight: bool = True,
) -> Iterator[Entry]:
    """Entries of one layer's `weight` and `bias`.

    Args:
        ours: the layer's name in the model.
        theirs: its name in the checkpoint, or the names of the layers it is made of.
        conversion: of the weight; the bias is converted too unless it is a transposition.
    """
    names = (theirs,) if isinstance(theirs, str) else tuple(theirs)
    if weight:
        yield Entry((f"{ours}.weight",), tuple(f"{name}.weight" for name in names), conversion)
    if bias:
        theirs = tuple(f"{name}.bias" for name in names)
        yield Entry((f"{ours}.bias",), theirs, SAME if len(names) == 1 else conversion)


def identity_table(names: Sequence[str]) -> Table:
    """The table of checkpoints that use the model's own names."""
    return Table(tuple(Entry((name,), (name,)) for name in names))


def from_checkpoint(
    table: Table, checkpoint: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> None:
    """Fill a model's weights from a checkpoint, in place and in the weights' own dtype.

    Args:
        table: what is what.
        checkpoint: the tensors by their names; each is read once, one entry at a time.
        weights: the model's, of which the table must name every one.

    Raises:
        ValueError: weights are missing, unknown, of another shape or not the copies that they
            should be. Nothing is written then.
    """
    stored = _stored_names(table, checkpoint)
    _check_table(table, weights)
    _check_names_and_shapes(table, checkpoint, stored, weights)
    with torch.no_grad():
        for entry in table.entries:
            theirs = [checkpoint[stored[name]] for name in entry.theirs]
            for name, tensor in zip(entry.ours, entry.conversion.load(theirs), strict=True):
                weights[name].copy_(tensor)


def to_checkpoint(table: Table, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights under a checkpoint's names; contiguous, detached, perhaps not copies."""
    _check_table(table, weights)
    checkpoint: dict[str, Tensor] = {}
    for entry in table.entries:
        tensors = entry.conversion.save([weights[name].detach() for name in entry.ours])
        for name, tensor in zip(entry.theirs, tensors, strict=True):
            checkpoint[name] = tensor.contiguous()
    return checkpoint


def _stored_names(table: Table, checkpoint: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in the checkpoint by name in the table, without what is ignored."""
    stored: dict[str, str] = {}
    for name in checkpoint:
        todays = table.todays_name(name)
        if table.ignores(todays):
            continue
        if todays in stored:
            raise ValueError(f"checkpoint: names one weight twice, got {stored[todays]} and {name}")
        stored[todays] = name
    return stored


def _check_table(table: Table, weights: Mapping[str, Tensor]) -> None:
    ours = [name for entry in table.entries for name in entry.ours]
    if sorted(ours) != sorted(weights):
        different = sorted(set(ours) ^ set(weights)) or "a name twice"
        raise ValueError(f"table: must name each weight of the model once, got {different}")


def _check_names_and_shapes(
    table: Table,
    checkpoint: Mapping[str, Tensor],
    stored: Mapping[str, str],
    weights: Mapping[str, Tensor],
) -> None:
    copies = table.copies or {}
    wanted = _their_shapes(table, weights)
    shapes = {name: tuple(checkpoint[stored[name]].shape) for name in wanted if name in stored}
    complaints = {
        "lacks": [name for name in wanted if name not in stored],
        "has unknown": [stored[name] for name in stored if name not in {*wanted, *copies}],
        "has another shape for": [
            f"{stored[name]} ({list(shape)} instead of {list(wanted[name])})"
            for name, shape in shapes.items()
            if shape != wanted[name]
        ],
    }
    if not any(complaints.values()):
        complaints["has an own weight instead of a copy in"] = [
            f"{stored[name]} (of {stored[source]})"
            for name, source in copies.items()
            if name in stored and not torch.equal(*(checkpoint[stored[n]] for n in (name, source)))
        ]
    parts = [f"{verb} {_listed(names)}" for verb, names in complaints.items() if names]
    if parts:
        rule = "must have exactly the weights of the model"
        raise ValueError(f"checkpoint: {rule}, but it {'; '.join(parts)}")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _their_shapes(table: Table, weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """What the checkpoint's tensors must look like for this model."""
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in table.entries:
        ours = [torch.empty(weights[name].shape, device="meta") for name in entry.ours]
        tensors = entry.conversion.save(ours)
        shapes.update(
            (name, tuple(tensor.shape)) for name, tensor in zip(entry.theirs, tensors, strict=True)
        )
    return shapes
