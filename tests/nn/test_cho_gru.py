"""ChoGRU: its equations, packed rows, layers and directions, and how it differs from torch's."""

from __future__ import annotations

import pytest
import torch
from budget import assert_same
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fused_attention.nn import ChoGRU

BATCH, STEPS, INPUTS, HIDDEN = 3, 6, 4, 5
LENGTHS = torch.tensor([4, 6, 1])


def module(layers: int = 1, bidirectional: bool = False, dropout: float = 0.0) -> ChoGRU:
    torch.manual_seed(0)
    options = {"bidirectional": bidirectional, "dropout": dropout}
    one = ChoGRU(INPUTS, HIDDEN, layers, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
    return one


def inputs() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(BATCH, STEPS, INPUTS, dtype=torch.float64)


def packed(x: Tensor) -> PackedSequence:
    return pack_padded_sequence(x, LENGTHS, True, False)


def test_is_its_equations() -> None:
    one, x = module(), inputs()
    W, U, b = one.weight_ih_l0, one.weight_hh_l0, one.bias_l0
    out, last = one(x)
    for row, steps in zip(x, out, strict=True):
        h = torch.zeros(HIDDEN, dtype=torch.float64)
        for step, actual in zip(row, steps, strict=True):
            (wr, wz, wh), (ur, uz, uh) = (W @ step + b).chunk(3), U.chunk(3)
            r, z = torch.sigmoid(wr + ur @ h), torch.sigmoid(wz + uz @ h)
            h = (1 - z) * h + z * torch.tanh(wh + uh @ (r * h))
            assert_same(actual, h)
    assert_same(last[0], out[:, -1])


def test_is_torchs_where_nothing_is_reset() -> None:
    """With r = 1 only the meaning of z differs: torch's z is 1 - z here."""
    one, theirs = module(), nn.GRU(INPUTS, HIDDEN, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        one.weight_ih_l0[:HIDDEN] = one.weight_hh_l0[:HIDDEN] = 0.0
        one.bias_l0[:HIDDEN] = 50.0
        sign = torch.ones(3 * HIDDEN, 1, dtype=torch.float64)
        sign[HIDDEN : 2 * HIDDEN] = -1.0
        theirs.weight_ih_l0.copy_(sign * one.weight_ih_l0)
        theirs.weight_hh_l0.copy_(sign * one.weight_hh_l0)
        theirs.bias_ih_l0.copy_(sign[:, 0] * one.bias_l0)
        theirs.bias_hh_l0.zero_()
    assert_same(one(inputs()), theirs(inputs()))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_packed_rows_are_rows_alone(layers: int, bidirectional: bool) -> None:
    one, x = module(layers, bidirectional), inputs()
    out, last = one(packed(x))
    states, lengths = pad_packed_sequence(out, True)
    assert lengths.tolist() == LENGTHS.tolist()
    assert last.shape == (layers * (1 + bidirectional), BATCH, HIDDEN)
    for b, length in enumerate(LENGTHS.tolist()):
        alone, end = one(x[b : b + 1, :length])
        assert_same(states[b, :length], alone[0])
        assert_same(last[:, b], end[:, 0])


def test_the_backward_direction_is_the_forward_one_of_the_reversed_rows() -> None:
    one, x = module(bidirectional=True), inputs()
    out, last = one(x)
    other = module()
    for name in ("weight_ih", "weight_hh", "bias"):
        getattr(other, f"{name}_l0").data = getattr(one, f"{name}_l0_reverse").data
    turned, end = other(x.flip(1))
    assert_same(out[..., HIDDEN:], turned.flip(1))
    assert_same(last[1], end[0])


def test_goes_on_from_a_state() -> None:
    one, x = module(2), inputs()
    whole, last = one(x)
    first, between = one(x[:, :4])
    second, end = one(x[:, 4:], between)
    assert_same(torch.cat((first, second), 1), whole)
    assert_same(end, last)


def test_dropout_is_between_layers_in_training() -> None:
    one, x = module(2, dropout=0.5), inputs()
    assert not torch.equal(one(x)[0], one(x)[0])
    assert_same(one.eval()(x), module(2)(x))
    single = module(1, dropout=0.5)
    assert torch.equal(single(x)[0], single(x)[0])


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="hidden_size: must be at least 1, got 0"):
        ChoGRU(3, 0)
