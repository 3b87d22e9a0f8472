"""The feed-forward part is its formula, with each activation, gated or not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fused_attention.nn import FeedForward


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "relu": lambda x: x * (x > 0),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", FORMULAS)
def test_is_its_formula(activation: str, gated: bool, bias: bool) -> None:
    options = {"activation": activation, "gated": gated, "bias": bias}
    module = FeedForward(6, 10, dtype=torch.float64, **options)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    hidden = x @ module.up.weight.T + (module.up.bias if bias else 0)
    if gated:
        hidden = FORMULAS[activation](hidden[..., :10]) * hidden[..., 10:]
    else:
        hidden = FORMULAS[activation](hidden)
    exact = hidden @ module.down.weight.T + (module.down.bias if bias else 0)
    torch.testing.assert_close(module(x), exact)
    assert (module.up.bias is not None) == (module.down.bias is not None) == bias


def test_dropout_only_in_training() -> None:
    module = FeedForward(4, 64, dropout=0.5)
    x = torch.randn(2, 4)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="activation: must be one of relu, gelu, .* got swish"):
        FeedForward(4, 8, activation="swish")
