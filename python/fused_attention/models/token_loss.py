"""The cross-entropy of a model's tokens, which reads and writes the logits once each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_attention.shortcut import transforms_active

IGNORED = -100  # a label that counts for nothing, cross_entropy's own default
_IN_CACHE = 1 << 19  # numbers of which a core's cache holds a copy in fp32


def token_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the labels that are not IGNORED, 0 if there are none.

    It is torch's cross_entropy of logits.float(). On CPUs it goes through a few rows at a time, so
    that no fp32 copies of all logits go through memory, and keeps for backward only the logits
    themselves.

    Args:
        logits: [tokens, vocab_size].
        labels: int64 [tokens].
        smoothing: label smoothing in [0, 1) (Szegedy et al. 2016; Vaswani et al. 2017, section
            5.4): this share of the probability is spread over the whole vocabulary.

    Returns:
        A scalar in fp32 (fp64 for fp64), in nats.
    """
    count = (labels != IGNORED).sum().clamp(min=1)
    if logits.device.type != "cpu" or torch.compiler.is_compiling() or transforms_active():
        return _plain_sum(logits, labels, smoothing) / count
    total: Tensor = _TokenLoss.apply(logits, labels, smoothing)
    return total / count


class _TokenLoss(torch.autograd.Function):
    """The sum over the tokens."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.smoothing = smoothing
        sums = [_plain_sum(logits[rows], labels[rows], smoothing) for rows in _parts(logits)]
        return torch.stack(sums).sum() if sums else logits.new_zeros((), dtype=_wide(logits))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants to differentiate this again
            total = _plain_sum(logits, labels, ctx.smoothing)
            (again,) = torch.autograd.grad(total, logits, grad, create_graph=True)
            return again, None, None
        grad_logits = torch.empty_like(logits)
        for rows in _parts(logits):
            grad_logits[rows] = _gradient(logits[rows], labels[rows], ctx.smoothing, grad)
        return grad_logits, None, None


def _gradient(logits: Tensor, labels: Tensor, smoothing: float, grad: Tensor) -> Tensor:
    """softmax(logits) minus what it should be, times grad; zeros for labels that are IGNORED."""
    counts = (labels != IGNORED).unsqueeze(1)
    wrong = F.softmax(logits, 1, dtype=_wide(logits))
    if smoothing:
        wrong.sub_(smoothing / logits.shape[1])
    right = wrong.new_full((len(wrong), 1), smoothing - 1.0)
    wrong.scatter_add_(1, labels.unsqueeze(1).where(counts, 0), right)
    return wrong.mul_(grad * counts)


def _plain_sum(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The sum over the tokens by torch."""
    options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": "sum"}
    wide = logits.to(_wide(logits))
    return F.cross_entropy(wide, labels, ignore_index=IGNORED, **options)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _parts(logits: Tensor) -> Iterator[slice]:
    """Rows, as many as fit into the cache."""
    step = max(1, _IN_CACHE // max(1, logits.shape[1]))
    return (slice(first, first + step) for first in range(0, len(logits), step))
