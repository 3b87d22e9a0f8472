"""Rotary position embeddings (RoFormer, Su et al. 2021): positions as rotations of q and k."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    Raises:
        ValueError: base is not above 0, or dim is not even or not above 0.
    """

    base: float = 10000.0
    dim: int | None = None
    interleaved: bool = False

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
        dim = x.shape[-1] if self.dim is None else self.dim
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        exponents = torch.arange(0, dim, 2, device=x.device, dtype=dtype) / dim
        angles = positions.to(dtype).unsqueeze(-1) * self.base**-exponents
        if positions.dim() == 2:
            angles = angles.unsqueeze(1)  # the same for every head
        cos, sin = angles.cos(), angles.sin()  # [length, dim / 2] or [batch, 1, length, dim / 2]
        turned, rest = x[..., :dim].to(dtype), x[..., dim:]
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            turned = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
        turned = turned.to(x.dtype)
        return torch.cat((turned, rest), -1) if rest.shape[-1] else turned
