"""Rotary embeddings are the rotations of the paper, and scores depend on distances alone."""

from __future__ import annotations

import pytest
import torch
from budget import assert_within_budget
from torch import Tensor

from fused_attention.nn import Rotary


def by_complex_numbers(
    rotary: Rotary, x: Tensor, positions: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Each pair as one complex number, turned by exp(i * position * frequency)."""
    x = x.to(dtype)
    dim = rotary.dim or x.shape[-1]
    turned, rest = x[..., :dim], x[..., dim:]
    if rotary.interleaved:
        pairs = torch.view_as_complex(turned.unflatten(-1, (-1, 2)).contiguous())
    else:
        pairs = torch.complex(*turned.chunk(2, -1))
    frequencies = rotary.base ** (-torch.arange(0, dim, 2).to(dtype) / dim)
    angles = positions.to(dtype)[..., None] * frequencies
    angles = angles if positions.dim() == 1 else angles[:, None]
    turns = torch.polar(torch.ones_like(angles), angles)
    parts = torch.view_as_real(pairs * turns)
    turned = parts.flatten(-2) if rotary.interleaved else torch.cat(parts.unbind(-1), -1)
    return torch.cat((turned, rest), -1)


ROTARIES = (Rotary(), Rotary(interleaved=True), Rotary(base=500.0, dim=6), Rotary(1e6, 2, True))
POSITIONS = {
    "one for all": torch.arange(3, 8),
    "per row": torch.tensor([[0, 1, 2, 3, 4], [900, 7, 7, 2, 1]]),
}


@pytest.mark.parametrize("rotary", ROTARIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", POSITIONS)
def test_is_a_complex_rotation(rotary: Rotary, dtype: torch.dtype, positions: str) -> None:
    x = torch.randn(2, 3, 5, 10, dtype=torch.float64).to(dtype)
    out = rotary.rotate(x, POSITIONS[positions])
    assert out.dtype == dtype and out.shape == x.shape
    exact = by_complex_numbers(rotary, x, POSITIONS[positions])
    baseline = by_complex_numbers(rotary, x, POSITIONS[positions], torch.float32)
    low = dtype if dtype == torch.bfloat16 else torch.float32
    assert_within_budget(out, exact, baseline.to(low))


def test_scores_depend_on_distances() -> None:
    query, key = torch.randn(2, 1, 1, 4, 8, dtype=torch.float64)
    rotary = Rotary()

    def scores(start: int) -> Tensor:
        positions = torch.arange(start, start + 4)
        return rotary.rotate(query, positions) @ rotary.rotate(key, positions).mT

    torch.testing.assert_close(scores(0), scores(1000))


def test_position_0_changes_nothing() -> None:
    x = torch.randn(1, 1, 1, 8)
    assert torch.equal(Rotary().rotate(x, torch.tensor([0])), x)


def test_gradient() -> None:
    x = torch.randn(1, 2, 3, 6, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(3)
    assert torch.autograd.gradcheck(lambda x: Rotary(dim=4).rotate(x, positions), (x,))


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="base: must be above 0, got 0"):
        Rotary(base=0)
    with pytest.raises(ValueError, match="dim: must be even and above 0, got 3"):
        Rotary(dim=3)
    with pytest.raises(ValueError, match="dim: must be even and above 0, got 0"):
        Rotary(dim=0)
