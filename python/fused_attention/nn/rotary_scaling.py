"""Rotary frequencies for contexts longer than those of the pretraining.

Each class says how the angle per position of a pair of elements changes. Without scaling pair n of
`dim` elements turns by base ** (-2 * n / dim) per position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def frequencies(
    base: float, dim: int, dtype: torch.dtype, device: torch.device | str | None
) -> Tensor:
    """The angle per position of each pair, [dim / 2]."""
    exponents = torch.arange(0, dim, 2, device=device, dtype=dtype) / dim
    return base**-exponents


def _check_factor(factor: float) -> None:
    if not factor >= 1:
        raise ValueError(f"factor: must be at least 1, got {factor}")


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (position interpolation, Chen et al. 2023)."""

    factor: float

    amplitude = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def apply(self, pairs: Tensor, base: float, length: int) -> Tensor:
        return pairs / self.factor


@dataclass(frozen=True)
class DynamicScaling:
    """The base grows with the length once that exceeds the pretraining's (dynamic NTK).

    With a cache, keys stay turned as they were when they were stored.
    """

    factor: float
    pretrained_length: int

    amplitude = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def apply(self, pairs: Tensor, base: float, length: int) -> Tensor:
        if length <= self.pretrained_length:
            return pairs
        dim = 2 * len(pairs)
        growth = self.factor * length / self.pretrained_length - (self.factor - 1)
        longer = base * growth ** (dim / (dim - 2))
        return frequencies(longer, dim, pairs.dtype, pairs.device)


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow pairs divided by `factor`, fast ones kept, a ramp between (Llama 3.1's models).

    Attributes:
        factor: by how much the context grows.
        low_factor: pairs that turn fewer times than this within the pretraining's length are slow.
        high_factor: pairs that turn more often than this are fast.
        pretrained_length: the pretraining's length.
    """

    factor: float
    low_factor: float
    high_factor: float
    pretrained_length: int

    amplitude = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if not self.low_factor < self.high_factor:
            rule = f"must be below high_factor {self.high_factor}"
            raise ValueError(f"low_factor: {rule}, got {self.low_factor}")

    def apply(self, pairs: Tensor, base: float, length: int) -> Tensor:
        turns = self.pretrained_length * pairs / (2 * math.pi)
        kept = (turns - self.low_factor) / (self.high_factor - self.low_factor)
        kept = kept.clamp(0, 1)
        return (1 - kept) * pairs / self.factor + kept * pairs


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): a ramp over the pairs as in Llama 3, and sharper scores.

    Attributes:
        factor: by how much the context grows.
        pretrained_length: the pretraining's length.
        fast: pairs that turn at least this often within it are kept.
        slow: pairs that turn at most this often are divided by `factor`.
        attention_factor: of cosine and sine; None is 0.1 * ln(factor) + 1.
        truncate: the ramp begins and ends at whole pairs.
    """

    factor: float
    pretrained_length: int
    fast: float = 32.0
    slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    @property
    def amplitude(self) -> float:
        """What cosine and sine are multiplied with."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1

    def apply(self, pairs: Tensor, base: float, length: int) -> Tensor:
        low, high = self._pair(self.fast, base, pairs), self._pair(self.slow, base, pairs)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * len(pairs) - 1)
        steps = torch.arange(len(pairs), dtype=pairs.dtype, device=pairs.device)
        divided = ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
        return divided * pairs / self.factor + (1 - divided) * pairs

    def _pair(self, turns: float, base: float, pairs: Tensor) -> float:
        """The (broken) number of the pair that turns so often within the pretraining's length."""
        positions_per_radian = self.pretrained_length / (turns * 2 * math.pi)
        return len(pairs) * math.log(positions_per_radian) / math.log(base)


RotaryScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling
