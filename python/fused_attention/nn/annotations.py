"""A source as a recurrent decoder's attention reads it: what it remembers of it for all steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention.checks import check_integers, check_tensor, shape_of, wrong_value


class Annotations(NamedTuple):
    """The encoder's states, one for each token of the source, and their keys."""

    states: Tensor  # [batch, length, features], of which contexts are weighted sums
    keys: Tensor  # [batch, length, key features], what queries are compared with
    lengths: Tensor | None = None  # integer [batch]; None: all are `length` long

    def repeated(self, rows: int) -> Annotations:
        """Each row `rows` times, one after the other, as beams need them."""
        states = self.states.repeat_interleave(rows, 0)
        # Where the states are the keys too, they stay one tensor.
        keys = states if self.keys is self.states else self.keys.repeat_interleave(rows, 0)
        lengths = None if self.lengths is None else self.lengths.repeat_interleave(rows, 0)
        return Annotations(states, keys, lengths)

    def with_unit_states(self) -> Annotations:
        """Unit vectors in the states' place: an attention's contexts are then its weights."""
        batch, length = self.states.shape[:2]
        units = torch.eye(length, dtype=self.states.dtype, device=self.states.device)
        return self._replace(states=units.expand(batch, length, length))

    def true_lengths(self) -> Tensor:
        """Integer [batch], also where all are alike."""
        if self.lengths is not None:
            return self.lengths
        batch, length = self.states.shape[:2]
        return torch.full((batch,), length, device=self.states.device)


def check_states(states: Any, lengths: Any, features: int) -> None:
    """The encoder's states [batch, length, features] and integer lengths [batch] or None."""
    check_tensor("states", states)
    if states.dim() != 3 or states.shape[2] != features:
        rule = f"must be [batch, length, {features}]"
        wrong_value("states", rule, f"shape {shape_of(states)}")
    if lengths is not None:
        check_integers("lengths", lengths, states.device, len(states))


def check_query(query: Any, annotations: Annotations, features: int) -> None:
    """The decoder's states [batch, steps, features] beside a source's annotations."""
    check_tensor("query", query)
    if query.dim() != 3 or query.shape[2] != features:
        wrong_value("query", f"must be [batch, steps, {features}]", f"shape {shape_of(query)}")
    if len(query) != len(annotations.states):
        rule = f"must have the annotations' batch {len(annotations.states)}"
        wrong_value("query", rule, len(query))
