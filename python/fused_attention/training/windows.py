"""Batches for a language model: windows of one long text, at random places."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_attention.training.batch import Batch
from fused_attention.training.corpora import DataError
from fused_attention.training.seeds import generator


class TokenWindows:
    """Batch n holds `count` windows of `length` tokens, drawn anew for each n.

    Args:
        tokens: int64 [all tokens].
        length: of a window.
        count: windows in a batch.
        seed: of the places.

    Raises:
        DataError: the text is shorter than a window and the token after it.
    """

    def __init__(self, tokens: Tensor, length: int, count: int, seed: int) -> None:
        if len(tokens) <= length:
            rule = f"must have more than {length} tokens in each of its parts"
            raise DataError(f"data: {rule}, got {len(tokens)}")
        self.tokens, self.length, self.count, self.seed = tokens, length, count, seed
        self._offsets = torch.arange(length + 1)

    def __getitem__(self, index: int) -> Batch:
        places = torch.randint(
            len(self.tokens) - self.length,
            (self.count, 1),
            generator=generator("windows", self.seed, index),
        )
        return window_batch(self.tokens[places + self._offsets])


def even_windows(tokens: Tensor, length: int, count: int, batches: int) -> list[Batch]:
    """Batches of windows at even distances over the whole text, for validation."""
    last = len(tokens) - length - 1
    if last < 0:
        raise DataError(f"data: must have more than {length} tokens to validate on")
    places = torch.linspace(0, last, count * batches, dtype=torch.float64).long()
    windows = tokens[places.unsqueeze(1) + torch.arange(length + 1)]
    return [window_batch(part) for part in windows.split(count)]


def window_batch(windows: Tensor) -> Batch:
    """Each token of int64 [count, length + 1] but the first is predicted from those before it."""
    inputs = {"input_ids": windows[:, :-1], "labels": windows[:, 1:]}
    return Batch(inputs, windows.shape[0] * (windows.shape[1] - 1))
