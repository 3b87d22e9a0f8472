"""Which heads of a case the gate compares: all, or of a large problem on a GPU a few.

Heads are independent and thread blocks take them in order: the first, the last and some between
stand for the others. In fp64 all of them would take longer than the measurement itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case, Inputs

HEADS = 4  # key heads that are compared
MOST_PAIRS = 2**28  # visible pairs of query and key up to which all heads are


@dataclass(frozen=True)
class Sample:
    """A case cut down to some of its key heads: each becomes a batch row of its own."""

    case: Case
    whole: Case
    heads: tuple[int, ...] | None  # batch row * key heads + key head; None: all of the case

    @classmethod
    def of(cls, case: Case) -> Sample:
        heads = case.batch * case.heads_kv
        pairs = case.visible_pairs * case.batch * case.heads_q
        if case.device == "cpu" or pairs <= MOST_PAIRS or heads <= HEADS:
            return cls(case, case, None)
        chosen = tuple(i * (heads - 1) // (HEADS - 1) for i in range(HEADS))
        groups = case.heads_q // case.heads_kv
        small = dataclasses.replace(case, batch=HEADS, heads_q=groups, heads_kv=1)
        return cls(small, case, chosen)

    def of_queries(self, tensor: Tensor) -> Tensor:
        """[B, Hq, L, D] -> [heads, group, L, D]."""
        return self._pick(tensor, self.whole.heads_q // self.whole.heads_kv)

    def of_keys(self, tensor: Tensor) -> Tensor:
        """[B, Hkv, L, D] -> [heads, 1, L, D]."""
        return self._pick(tensor, 1)

    def inputs(self, inputs: Inputs) -> Inputs:
        query, grad_out = self.of_queries(inputs.query), self.of_queries(inputs.grad_out)
        key, value = self.of_keys(inputs.key), self.of_keys(inputs.value)
        return Inputs(query, key, value, grad_out, inputs.mask)

    def results(self, results: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sampled part of out, dq, dk and dv."""
        return {
            name: self.of_keys(result) if name in ("dk", "dv") else self.of_queries(result)
            for name, result in results.items()
        }

    def _pick(self, tensor: Tensor, group: int) -> Tensor:
        if self.heads is None:
            return tensor
        batch, _, length, dim = tensor.shape
        each = tensor.detach().reshape(batch * self.whole.heads_kv, group, length, dim)
        return each.index_select(0, torch.tensor(self.heads, device=tensor.device))
