"""How the next token is chosen from the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fused_attention.checks import wrong_value


@dataclass(frozen=True)
class Sampling:
    """The rules that narrow the distribution, applied in this order, and the seed of the draw.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token, whatever the others say.
        top_k: only so many of the likeliest tokens stay.
        top_p: only the likeliest tokens stay that together have this probability, the one that
            reaches it included (nucleus sampling, Holtzman et al. 2020).
        seed: row n of a batch draws from a generator of its own with seed + n, so that a text does
            not depend on what else is in the batch.

    Raises:
        ValueError: an attribute is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            wrong_value("temperature", "must be finite and at least 0", self.temperature)
        if self.top_k is not None and self.top_k < 1:
            wrong_value("top_k", "must be at least 1", self.top_k)
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            wrong_value("top_p", "must be in (0, 1]", self.top_p)
        if not 0 <= self.seed < 1 << 62:
            wrong_value("seed", "must be in [0, 2**62)", self.seed)

    def generators(self, rows: int) -> list[torch.Generator]:
        """One for each row of a batch."""
        return [torch.Generator().manual_seed(self.seed + row) for row in range(rows)]

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is drawn from, fp32.

        Args:
            logits: [..., vocabulary].
        """
        logits = logits.float()
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        likely = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1.0:
            ordered, tokens = likely.sort(dim=-1, descending=True)
            before = ordered.cumsum(-1) - ordered
            kept = torch.zeros_like(likely, dtype=torch.bool)
            kept.scatter_(-1, tokens, before < self.top_p)
            likely = likely.masked_fill(~kept, 0.0)
            likely = likely / likely.sum(-1, keepdim=True)
        return likely

    def choose(self, logits: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The next token of each row, int64 [rows].

        Args:
            logits: [rows, vocabulary].
            generators: from `generators`; each gives one number.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        ends = self.probabilities(logits).double().cumsum(-1)
        drawn = [torch.rand((), generator=one, dtype=torch.float64) for one in generators]
        places = torch.stack(drawn).to(ends.device)[:, None] * ends[:, -1:]
        return torch.searchsorted(ends, places, right=True).squeeze(-1)


GREEDY = Sampling(temperature=0.0)
