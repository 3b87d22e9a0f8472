"""Rotary position embeddings (RoFormer, Su et al. 2021): positions as rotations of q and k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.nn.rotary_scaling import DynamicScaling, RotaryScaling, frequencies


class Rotation(NamedTuple):
    """The angles of a batch's tokens; layers with the same Rotary share them."""

    cos: Tensor  # [..., dim / 2], fp32 (fp64 for fp64), broadcastable to what is turned
    sin: Tensor
    interleaved: bool = False

    def turn(self, x: Tensor) -> Tensor:
        """`x` [..., head_dim] with its first `dim` elements turned, in its dtype."""
        cos, sin, interleaved = self
        dim = 2 * cos.shape[-1]
        turned, rest = x[..., :dim].to(cos.dtype), x[..., dim:]
        if interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            turned = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
        turned = turned.to(x.dtype)
        return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


@dataclass(frozen=True)
class Rotary:
    """How positions turn the pairs of a query's or key's elements.

    Pair n at position t is rotated by t / base ** (2 * n / dim), so that a score depends on the
    distance of its query and its key alone.

    Attributes:
        base: the slowest pair turns once in about 2 * pi * base positions.
        dim: how many leading elements of head_dim are rotated, an even number; None is all.
        interleaved: pairs are neighbours (RoFormer, GPT-J) instead of the elements n and
            n + dim / 2 (GPT-NeoX, Llama).
        scaling: changes the frequencies for contexts longer than those of the pretraining.

    Raises:
        ValueError: base is not above 0, or dim is not even or not above 0.
    """

    base: float = 10000.0
    dim: int | None = None
    interleaved: bool = False
    scaling: RotaryScaling | None = None

    def __post_init__(self) -> None:
        if not self.base > 0:
            raise ValueError(f"base: must be above 0, got {self.base}")
        if self.dim is not None and (self.dim <= 0 or self.dim % 2):
            raise ValueError(f"dim: must be even and above 0, got {self.dim}")

    def check_head_dim(self, head_dim: int) -> None:
        """Raise a ValueError unless heads of this size can be rotated."""
        dim = head_dim if self.dim is None else self.dim
        if dim > head_dim or dim % 2:
            raise ValueError(f"rotary: its dim must be even and at most {head_dim}, got {dim}")

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """`x` with its positions in it.

        Args:
            x: [batch, heads, length, head_dim], floating point.
            positions: integer [length] or [batch, length].

        Returns:
            A tensor like `x`; the angles and the rotation are computed in fp32 (fp64 for fp64).
        """
        cos, sin = self._tables(positions, x.shape[-1], x.dtype)
        if positions.dim() == 2:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for every head
        return Rotation(cos, sin, self.interleaved).turn(x)

    def rotation(self, positions: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
        """The angles for heads [..., heads, head_dim] of tokens at `positions` [...].

        Args:
            positions: integer [length], [batch, length] or, packed, [total].
            head_dim: of the heads that will be turned.
            dtype: theirs.
        """
        cos, sin = self._tables(positions, head_dim, dtype)
        return Rotation(cos.unsqueeze(-2), sin.unsqueeze(-2), self.interleaved)

    def _tables(
        self, positions: Tensor, head_dim: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles at `positions`, [*positions.shape, dim / 2]."""
        dim = head_dim if self.dim is None else self.dim
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        pairs, scaling = frequencies(self.base, dim, wide, positions.device), self.scaling
        if scaling is not None:
            grows = isinstance(scaling, DynamicScaling) and positions.numel() > 0
            length = int(positions.max()) + 1 if grows else 0
            pairs = scaling.apply(pairs, self.base, length)
        angles = positions.to(wide).unsqueeze(-1) * pairs
        cos, sin = angles.cos(), angles.sin()
        amplitude = 1.0 if scaling is None else scaling.amplitude
        return (cos, sin) if amplitude == 1.0 else (cos * amplitude, sin * amplitude)
