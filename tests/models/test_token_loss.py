"""The cross-entropy of tokens against torch's: values, gradients, memory, differentiation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from budget import GRADIENT_FACTOR, assert_within_budget
from torch import Tensor

from fused_attention.models import token_loss as room
from fused_attention.models.token_loss import IGNORED, token_loss


@pytest.fixture(autouse=True)
def few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_IN_CACHE", 150)  # 3 rows of 50: the last part is a short one


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(50, (20,))
    labels[[0, 7, 8, 9, 19]] = IGNORED
    return (4 * torch.randn(20, 50)).to(dtype), labels


def plain(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=smoothing)


def with_gradient(loss: object, logits: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, *rest)  # type: ignore[operator]
    (3 * value).backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_is_torchs(dtype: torch.dtype, smoothing: float) -> None:
    logits, labels = problem(dtype)
    exact = with_gradient(plain, logits.double(), labels, smoothing)
    found = with_gradient(token_loss, logits, labels, smoothing)
    if dtype == torch.float64:
        torch.testing.assert_close(found, exact)
        return
    yardstick = with_gradient(lambda x, *rest: plain(x.float(), *rest), logits, labels, smoothing)
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    assert_within_budget(found[0], exact[0], yardstick[0], name="loss")
    assert_within_budget(found[1], exact[1], yardstick[1], factor=GRADIENT_FACTOR, name="gradient")


def test_nothing_to_predict() -> None:
    logits, labels = problem()
    for rows in (20, 0):
        value, gradient = with_gradient(
            token_loss, logits[:rows], torch.full_like(labels, IGNORED)[:rows], 0.1
        )
        assert value == 0 and not gradient.any()


def test_hidden_words_of_the_vocabulary() -> None:
    logits, labels = problem()
    logits[:, 0] = -torch.inf
    labels = labels.masked_fill(labels == 0, 1)
    expected = with_gradient(plain, logits, labels, 0.0)
    torch.testing.assert_close(with_gradient(token_loss, logits, labels, 0.0), expected)


def test_nothing_in_fp32_is_kept_for_backward() -> None:
    logits, labels = problem(torch.bfloat16)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        token_loss(logits.requires_grad_(), labels, 0.1)
    assert max(x.nbytes for x in kept) == logits.nbytes
    assert sum(x.nbytes for x in kept) < 1.5 * logits.nbytes


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_second_derivatives(smoothing: float) -> None:
    logits, labels = problem(torch.float64)
    logits.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return token_loss(x, labels, smoothing)

    assert torch.autograd.gradgradcheck(loss, logits)


def test_transforms() -> None:
    logits, labels = problem(torch.float64)
    _, expected = with_gradient(lambda x: token_loss(x, labels) / 3, logits)
    torch.testing.assert_close(torch.func.grad(token_loss)(logits, labels), expected)
    both = torch.vmap(torch.func.grad(token_loss), (0, None))(torch.stack((logits,) * 2), labels)
    torch.testing.assert_close(both, torch.stack((expected,) * 2))
    _, tangent = torch.func.jvp(lambda x: token_loss(x, labels), (logits,), (logits,))
    torch.testing.assert_close(tangent, (expected * logits).sum())


def test_it_compiles() -> None:
    logits, labels = problem()
    compiled = torch.compile(token_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, labels), token_loss(logits, labels))
