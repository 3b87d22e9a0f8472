"""Which tokens of a batch are whose: rows of one length, padded rows or packed sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a batch are.

    Without `cu_seqlens` a batch is [batch, length, ...], and row b holds `lengths[b]` tokens and
    then padding (without `lengths` no padding). With it the batch is packed, [total, ...], and
    sequence b is its rows cu_seqlens[b] up to cu_seqlens[b + 1].

    Attributes:
        lengths: integer [batch].
        cu_seqlens: int32 [batch + 1].
        max_length: of a packed batch, its longest sequence or more.

    Raises:
        ValueError: both lengths and cu_seqlens are given.
    """

    lengths: Tensor | None = None
    cu_seqlens: Tensor | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.lengths is not None and self.cu_seqlens is not None:
            raise ValueError("cu_seqlens: say where packed sequences are, got lengths too")

    @classmethod
    def packed_from(cls, lengths: Tensor) -> Sequences:
        """Packed sequences of these lengths, integer [batch]; reads them, which a GPU waits for."""
        ends = torch.cumsum(lengths, 0, dtype=torch.int32)
        longest = int(lengths.max()) if len(lengths) else 0
        return cls(None, torch.cat((ends.new_zeros(1), ends)), longest)

    @property
    def packed(self) -> bool:
        return self.cu_seqlens is not None

    def positions(self, tokens: Tensor) -> Tensor:
        """Each token's number within its sequence: [length], packed [total].

        Args:
            tokens: [batch, length, ...], packed [total, ...].
        """
        if self.cu_seqlens is None:
            return torch.arange(tokens.shape[1], device=tokens.device)
        rows = torch.arange(len(tokens), device=tokens.device)
        sequence = torch.searchsorted(self.cu_seqlens[1:].long(), rows, right=True)
        return rows - self.cu_seqlens[sequence]


def pack(padded: Tensor, lengths: Tensor) -> Tensor:
    """The tokens [total, ...] of a padded batch [batch, length, ...] without its padding."""
    return padded[_exists(lengths, padded.shape[1])]


def unpack(packed: Tensor, lengths: Tensor, length: int) -> Tensor:
    """[total, ...] as [batch, length, ...] with zeros beyond the lengths; differentiable."""
    places = _exists(lengths, length).flatten().nonzero().squeeze(1)
    rows = packed.new_zeros((len(lengths) * length, *packed.shape[1:]))
    filled: Tensor = rows.index_copy(0, places, packed).unflatten(0, (len(lengths), length))
    return filled


def _exists(lengths: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=lengths.device) < lengths[:, None]
