"""Positions as vectors that are added to the embeddings, or as slopes of the scores.

Learned positions are torch's nn.Embedding, rotary ones are `Rotary`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    """The fixed positions of Vaswani et al. 2017, section 3.5; called as an nn.Embedding.

    Channels 2i and 2i + 1 are sin and cos of position / base ** (2i / dim), so that the dot
    product of two positions depends on their distance alone, and moving all positions by the same
    distance is a linear map.

    Args:
        dim: even number of channels.
        base: wavelengths go from 2 pi to 2 pi * base.
        interleaved: sin and cos in turns, as in the paper; else all of sin, then all of cos
            (tensor2tensor, Marian).

    Raises:
        ValueError: dim is not even or not above 0.
    """

    def __init__(self, dim: int, *, base: float = 10000.0, interleaved: bool = True) -> None:
        super().__init__()
        if dim <= 0 or dim % 2:
            raise ValueError(f"dim: must be even and above 0, got {dim}")
        self.dim, self.base, self.interleaved = dim, base, interleaved

    def forward(self, positions: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The vectors of integer `positions` [...]: [..., dim] in `dtype`, torch's default."""
        dtype = dtype or torch.get_default_dtype()
        # fp32 would lose digits of the angle at large positions.
        exponents = torch.arange(0, self.dim, 2, device=positions.device) / self.dim
        angles = positions.double().unsqueeze(-1) * self.base ** -exponents.double()
        waves = (angles.sin(), angles.cos())
        both = torch.stack(waves, -1).flatten(-2) if self.interleaved else torch.cat(waves, -1)
        return both.to(dtype)

    def extra_repr(self) -> str:
        return f"{self.dim}, base={self.base}, interleaved={self.interleaved}"


def alibi_slopes(heads: int, device: torch.device | str | None = None) -> Tensor:
    """The slopes of ALiBi (Press et al. 2022) for `heads` heads, fp32 [heads].

    A geometric sequence from 2 ** (-8 / n) for n = heads, a power of two; for other numbers that
    of the power below, and every second one of twice that power.
    """
    power = 1 << (heads.bit_length() - 1)

    def sequence(count: int) -> list[float]:
        return [2 ** (-8 * (head + 1) / count) for head in range(count)]

    slopes = sequence(power) + sequence(2 * power)[0::2][: heads - power]
    return torch.tensor(slopes, dtype=torch.float32, device=device)
