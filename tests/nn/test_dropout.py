"""Dropout: shares, scales, repetition, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fused_attention.nn.dropout import dropout


@pytest.mark.parametrize("chance", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shares_and_scale(chance: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = dropout(torch.full((401, 503), 3.0, dtype=dtype), chance, True)
    assert out.dtype == dtype
    kept = out[out != 0]
    error = (chance * (1 - chance) / out.numel()) ** 0.5  # one standard deviation
    assert len(kept) / out.numel() == pytest.approx(1 - chance, abs=5 * error)
    assert kept.min() == kept.max()
    assert kept[0].item() == pytest.approx(3 / (1 - chance), rel=max(2e-3, torch.finfo(dtype).eps))


def test_elements_are_dropped_independently_of_each_other() -> None:
    torch.manual_seed(0)
    kept = (dropout(torch.ones(1 << 18), 0.5, True) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8, 64):
        together = 4 * (kept[distance:] * kept[:-distance]).mean().item()
        assert abs(together) < 5 / len(kept) ** 0.5, distance


def test_rare_drops_and_rare_survivors() -> None:
    torch.manual_seed(0)
    x = torch.ones(1 << 20)
    assert (dropout(x, 1e-3, True) == 0).sum().item() == pytest.approx(1049, rel=0.2)
    assert (dropout(x, 0.999, True) != 0).sum().item() == pytest.approx(1049, rel=0.2)


def test_nothing_is_dropped_in_evaluation_or_without_a_chance() -> None:
    x, state = torch.randn(5, 7), torch.get_rng_state()
    assert torch.equal(dropout(x, 0.5, False), x)
    assert torch.equal(dropout(x, 0.0, True), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_gives_the_same_mask_and_the_next_call_another() -> None:
    x = torch.ones(3, 333)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append((dropout(x, 0.5, True), dropout(x, 0.5, True)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(*map(lambda r: r[1], results))
    assert not torch.equal(*results[0])


@pytest.mark.parametrize("shape", [(), (1,), (3,), (0, 4), (2, 3, 5)])
def test_gradient_and_shapes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()
    out = dropout(x, 0.5, True)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient * x, out)
    assert out.shape == shape


def test_any_strides() -> None:
    torch.manual_seed(3)
    x = torch.randn(6, 10).t()[::2]
    out = dropout(x, 0.5, True)
    torch.testing.assert_close(out[out != 0], 2 * x[out != 0])


def test_each_row_of_vmap_has_its_own() -> None:
    def drop(row: Tensor) -> Tensor:
        return dropout(row, 0.5, True)

    rows = torch.vmap(drop, randomness="different")(torch.ones(2, 200))
    assert not torch.equal(rows[0], rows[1])
