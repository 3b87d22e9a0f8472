"""Attention weights after the fact: from the log-sum-exp that the kernels return.

P = exp(scores - lse) gives each head's weights without a softmax, so their mean is summed up head
by head, and neither forward nor backward holds [batch, heads, len_q, len_k].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def mean_weights(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    scale: float,
    bias: Tensor | None,
    hidden: Tensor | None,
) -> Tensor:
    """The weights averaged over the heads; differentiable in query, key, lse and bias.

    Args:
        query: [B, Hq, Lq, D].
        key: [B, Hkv, Lk, D].
        lse: [B, Hq, Lq], -inf for rows that see no key.
        bias: [B|1, Hq|1, Lq|1, Lk|1].
        hidden: bool [Lq, Lk] or [B, 1, Lq, Lk], True where the weight is 0.

    Returns:
        [B, Lq, Lk] in lse's dtype; rows that see no key are 0.
    """
    mean: Tensor = _MeanWeights.apply(query, key, _finite(lse), bias, hidden, scale)
    return mean


def each_heads_weights(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    scale: float,
    bias: Tensor | None,
    hidden: Tensor | None,
) -> Tensor:
    """The weights of every head, [B, Hq, Lq, Lk]; the arguments are those of `mean_weights`."""
    lse = _finite(lse)
    heads = (_weights(query, key, lse, bias, hidden, scale, h) for h in range(query.shape[1]))
    return torch.stack(tuple(heads), 1)


class _MeanWeights(torch.autograd.Function):
    """Recomputes each head's weights in backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        lse: Tensor,
        bias: Tensor | None,
        hidden: Tensor | None,
        scale: float,
    ) -> Tensor:
        heads = query.shape[1]
        total = _weights(query, key, lse, bias, hidden, scale, 0)
        for head in range(1, heads):
            total += _weights(query, key, lse, bias, hidden, scale, head)
        return total / heads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, lse, bias, hidden = ctx.saved_tensors
        heads, shared = query.shape[1], query.shape[1] // key.shape[1]
        grad = grad * (1 / heads)
        dq: list[Tensor] = []
        dk: list[Tensor] = []
        dlse: list[Tensor] = []
        dbias: list[Tensor] = []
        for head in range(heads):
            dS = grad * _weights(query, key, lse, bias, hidden, ctx.scale, head)  # noqa: N806
            q, k = query[:, head].to(dS.dtype), key[:, head // shared].to(dS.dtype)
            dq.append(dS @ k * ctx.scale)
            part = dS.mT @ q * ctx.scale
            dk.append(part) if head % shared == 0 else dk.append(dk.pop() + part)
            dlse.append(-dS.sum(-1))
            if bias is not None and ctx.needs_input_grad[3]:
                part = dS.sum_to_size(bias[:, 0].shape)
                alone = bias.shape[1] > 1 or not dbias
                dbias.append(part) if alone else dbias.append(dbias.pop() + part)
        return (
            torch.stack(dq, 1).to(query.dtype),
            torch.stack(dk, 1).to(key.dtype),
            torch.stack(dlse, 1),
            torch.stack(dbias, 1).to(bias.dtype) if dbias else None,
            None,
            None,
        )


def _weights(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    hidden: Tensor | None,
    scale: float,
    head: int,
) -> Tensor:
    """One head's weights, [B, Lq, Lk], in lse's dtype."""
    shared = query.shape[1] // key.shape[1]
    scores = (query[:, head].to(lse.dtype) * scale) @ key[:, head // shared].to(lse.dtype).mT
    if bias is not None:
        scores = scores + bias[:, head if bias.shape[1] > 1 else 0]
    if hidden is not None:
        scores = scores.masked_fill(hidden if hidden.dim() == 2 else hidden[:, 0], -torch.inf)
    return torch.exp(scores - lse[:, head].unsqueeze(-1))


def _finite(lse: Tensor) -> Tensor:
    """Rows that see no key have scores of -inf alone: exp(-inf - 0) is their weight of 0."""
    return lse.masked_fill(lse == -torch.inf, 0.0)
