"""The positions of the paper have the properties that it chose them for; look-alikes do not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fused_attention.nn import SinusoidalPositions, alibi_slopes

LENGTH, DIM = 200, 16


def closed_form(length: int = LENGTH, dim: int = DIM, base: float = 10000.0) -> Tensor:
    rows = [
        [
            wave(position / base ** (2 * i / dim))
            for i in range(dim // 2)
            for wave in (math.sin, math.cos)
        ]
        for position in range(length)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def variant_a(i: int, position: int) -> tuple[float, float]:
    """The cosine has lost its exponent."""
    return math.sin(position / 10000 ** (2 * i / DIM)), math.cos(position / 10000)


def variant_b(i: int, position: int) -> tuple[float, float]:
    """Both waves have lost it: every pair is the same."""
    return math.sin(position / 10000), math.cos(position / 10000)


def table(wave: Callable[[int, int], tuple[float, float]]) -> Tensor:
    rows = [[x for i in range(DIM // 2) for x in wave(i, p)] for p in range(LENGTH)]
    return torch.tensor(rows, dtype=torch.float64)


def dot_products_depend_on_distance(vectors: Tensor) -> bool:
    products = vectors @ vectors.T
    return torch.allclose(products[1:, 1:], products[:-1, :-1], atol=1e-9)


def shift_is_linear(vectors: Tensor, distance: int = 5) -> bool:
    before, after = vectors[:-distance], vectors[distance:]
    shift = torch.linalg.lstsq(before, after, driver="gelsd").solution
    return torch.allclose(before @ shift, after, atol=1e-9)


def positions_stay_apart(vectors: Tensor) -> bool:
    apart = torch.cdist(vectors, vectors) + torch.eye(len(vectors)) * 9
    return bool(apart.min() > 0.5)


PROPERTIES = (dot_products_depend_on_distance, shift_is_linear, positions_stay_apart)


@pytest.mark.parametrize("interleaved", [True, False])
def test_are_those_of_the_paper(interleaved: bool) -> None:
    module = SinusoidalPositions(DIM, interleaved=interleaved)
    vectors = module(torch.arange(LENGTH), torch.float64)
    exact = closed_form()
    if not interleaved:
        exact = torch.cat((exact[:, 0::2], exact[:, 1::2]), 1)
    torch.testing.assert_close(vectors, exact, atol=1e-12, rtol=0)
    assert [holds(vectors) for holds in PROPERTIES] == [True, True, True]


def test_wrong_formulas_lose_a_property() -> None:
    assert [holds(table(variant_a)) for holds in PROPERTIES] == [False, False, False]
    assert [holds(table(variant_b)) for holds in PROPERTIES] == [True, True, False]


def test_position_as_a_share_of_the_length_depends_on_the_length() -> None:
    """The first attempt of the slides: the same position gets another value in another sentence."""
    short, long = torch.arange(3) / 2, torch.arange(5) / 4
    assert short[1] != long[1]
    module = SinusoidalPositions(DIM)
    assert torch.equal(module(torch.arange(3)), module(torch.arange(5))[:3])


def test_any_positions_in_any_shape() -> None:
    module = SinusoidalPositions(DIM, base=100.0)
    positions = torch.tensor([[0, 7], [100_000, 3]])
    out = module(positions)
    assert out.shape == (2, 2, DIM) and out.dtype == torch.float32
    exact = closed_form(100_001, DIM, 100.0)[positions.flatten()].view(2, 2, DIM)
    torch.testing.assert_close(out.double(), exact, atol=1e-7, rtol=0)


@pytest.mark.parametrize("dim", [0, -2, 7])
def test_wrong_dim(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim: must be even and above 0, got {dim}"):
        SinusoidalPositions(dim)


def test_alibi_slopes() -> None:
    eight = [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(8).tolist() == eight
    between = [2.0 ** -(n / 2) for n in range(1, 17, 2)]
    assert alibi_slopes(12).tolist() == pytest.approx(eight + between[:4])
    assert alibi_slopes(1).tolist() == [2.0**-8]
