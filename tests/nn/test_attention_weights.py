"""Weights from the log-sum-exp are softmax's, differentiable, and need one head at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fused_attention import attention
from fused_attention.masks import Band
from fused_attention.nn.attention_weights import each_heads_weights, mean_weights

SCALE = 0.3


def operands(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Query with 4 heads, key with 2, and a bias that hides some keys and one query's all."""
    query, key = torch.randn(2, 4, 3, 5, dtype=dtype), torch.randn(2, 2, 6, 5, dtype=dtype)
    bias = torch.randn(1, 4, 3, 6, dtype=dtype).masked_fill(
        torch.rand(1, 4, 3, 6) < 0.3, -torch.inf
    )
    bias[:, :, 1] = -torch.inf
    return query, key, bias


def by_softmax(query: Tensor, key: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
    scores = query @ key.repeat_interleave(2, 1).mT * SCALE + bias
    return torch.softmax(scores.masked_fill(hidden, -torch.inf), -1).nan_to_num(0.0)


def test_are_those_of_softmax() -> None:
    query, key, bias = operands()
    lengths = torch.tensor([4, 0])
    band = Band.causal(2)
    _, lse = attention(
        query, key, key, band=band, kv_lengths=lengths, bias=bias, scale=SCALE, return_lse=True
    )
    hidden = ~band.mask(3, 6, lengths)
    exact = by_softmax(query, key, bias, hidden)
    each = each_heads_weights(query, key, lse, SCALE, bias, hidden)
    torch.testing.assert_close(each, exact)
    torch.testing.assert_close(mean_weights(query, key, lse, SCALE, bias, hidden), exact.mean(1))


@pytest.mark.parametrize("bias_shape", [(1, 4, 3, 6), (2, 1, 1, 6)], ids=str)
def test_gradients(bias_shape: tuple[int, ...]) -> None:
    query, key, _ = operands()
    bias, lse = torch.randn(bias_shape).double(), torch.randn(2, 4, 3).double()
    hidden = torch.rand(2, 1, 3, 6) < 0.3
    hidden[0, :, 1] = True
    variables = tuple(x.requires_grad_() for x in (query, key, lse, bias))

    def function(query: Tensor, key: Tensor, lse: Tensor, bias: Tensor) -> Tensor:
        return mean_weights(query, key, lse, SCALE, bias, hidden)

    assert torch.autograd.gradcheck(function, variables)
    assert torch.autograd.gradgradcheck(function, variables)


def test_gradient_of_rows_without_a_key_is_zero() -> None:
    query, key, bias = operands()
    query.requires_grad_()
    _, lse = attention(query, key, key, bias=bias, scale=SCALE, return_lse=True)
    mean_weights(query, key, lse, SCALE, bias, None).square().sum().backward()
    assert query.grad is not None and not query.grad[:, :, 1].any()
    assert query.grad.isfinite().all()


def test_vmap() -> None:
    query, key, _ = operands()
    lse = torch.randn(2, 4, 3).double()
    mapped = torch.func.vmap(
        lambda q, k, one: mean_weights(q[None], k[None], one[None], SCALE, None, None)[0]
    )(query, key, lse)
    torch.testing.assert_close(mapped, mean_weights(query, key, lse, SCALE, None, None))


def test_forward_and_backward_hold_one_head_at_a_time() -> None:
    """What autograd keeps is no larger than its inputs and outputs, whatever the heads."""
    heads, length = 16, 32
    query, key = torch.randn(2, 1, heads, length, 8)
    lse = torch.randn(1, heads, length)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mean_weights(query.requires_grad_(), key, lse, SCALE, None, None)
    assert max(kept) < heads * length * length
