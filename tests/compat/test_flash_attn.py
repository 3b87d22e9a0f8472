"""flash_attn 2's dense functions keep its conventions, against the formula written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from budget import GRADIENT_FACTOR, assert_within_budget
from compat.helpers import assert_same, draw
from compat.plain_attention import plain_batch, visible_keys
from torch import Tensor

from fused_attention.compat import attend
from fused_attention.compat.flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
)

SLOPES = torch.tensor([0.3, 0.05, 0.8, 0.1])


FEATURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # flash-attn's arguments, the plain reference's
    "full": ({}, {}),
    "causal": ({"causal": True}, {"causal": True}),
    "window": ({"window_size": (2, 1)}, {"window": (2, 1)}),
    "window, left alone": ({"window_size": (2, -1)}, {"window": (2, -1)}),
    "window, right alone": ({"window_size": (-1, 1)}, {"window": (-1, 1)}),
    "window (-1, 0) is causal": ({"window_size": (-1, 0)}, {"causal": True}),
    "window of one key": ({"window_size": (0, 0)}, {"window": (0, 0)}),
    "window, tensor": ({"window_size": torch.tensor([2, 1])}, {"window": (2, 1)}),
    "window, list": ({"window_size": [1, 3]}, {"window": (1, 3)}),
    "window, causal": ({"window_size": (2, 3), "causal": True}, {"window": (2, 0)}),
    "window wider than the keys": ({"window_size": (99, 10**12)}, {}),
    "scale": ({"softmax_scale": 0.7}, {"scale": 0.7}),
    "softcap": ({"softcap": 1.5}, {"softcap": 1.5}),
    "softcap below 0 is none": ({"softcap": -1.0}, {}),
    "ALiBi": ({"alibi_slopes": SLOPES}, {"slopes": SLOPES}),
    "ALiBi, causal, per batch row": (
        {"alibi_slopes": torch.stack([SLOPES, 2 * SLOPES]), "causal": True},
        {"slopes": torch.stack([SLOPES, 2 * SLOPES]), "causal": True},
    ),
    "all": (
        {"window_size": (4, 2), "softcap": 2.0, "alibi_slopes": SLOPES, "softmax_scale": 0.2},
        {"window": (4, 2), "softcap": 2.0, "slopes": SLOPES, "scale": 0.2},
    ),
    "deterministic": ({"deterministic": True}, {}),
}


@pytest.mark.parametrize("lengths", [(5, 7), (7, 3), (1, 6), (4, 4)], ids=str)
@pytest.mark.parametrize("name", FEATURES)
def test_out_lse_and_gradients(name: str, lengths: tuple[int, int]) -> None:
    options, plain = FEATURES[name]
    q, k, v = draw(*lengths)
    out, lse, pattern = flash_attn_func(q, k, v, return_attn_probs=True, **options)
    expected, expected_lse = plain_batch(q, k, v, **plain)
    assert_same(out, expected)
    assert_same(lse, expected_lse)
    assert pattern.numel() == 0
    assert torch.equal(flash_attn_func(q, k, v, **options), out)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(out, (q, k, v), grad)
    for actual, wanted in zip(found, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        assert_same(actual, wanted)


def test_positional_order() -> None:
    q, k, v = draw()
    tail = (0.0, 0.3, True, (2, 5), 1.5, SLOPES, False, False)
    expected, _ = plain_batch(q, k, v, SLOPES, scale=0.3, causal=True, window=(2, 0), softcap=1.5)
    assert_same(flash_attn_func(q, k, v, *tail), expected)
    assert_same(flash_attn_kvpacked_func(q, torch.stack([k, v], dim=2), *tail), expected)


def test_queries_that_see_no_key() -> None:
    q, k, v = draw(7, 3)
    out, lse, _ = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert torch.equal(out[:, :4], torch.zeros_like(out[:, :4]))
    assert (lse[:, :, :4] == -torch.inf).all() and lse[:, :, 4:].isfinite().all()
    grads = torch.autograd.grad(out.sum() + lse[:, :, 4:].sum(), (q, k, v))
    assert all(grad.isfinite().all() for grad in grads)
    assert torch.equal(grads[0][:, :4], torch.zeros_like(q[:, :4]))


def test_no_keys_at_all() -> None:
    q, k, v = draw(3, 0)
    out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True)
    assert torch.equal(out, torch.zeros_like(q)) and (lse == -torch.inf).all()


def test_lse_is_differentiable() -> None:
    q, k, v = draw()
    _, lse, _ = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    expected = plain_batch(q, k, v, causal=True)[1]
    found = torch.autograd.grad(lse.square().sum(), (q, k))
    wanted = torch.autograd.grad(expected.square().sum(), (q, k))
    for actual, exact in zip(found, wanted, strict=True):
        assert_same(actual, exact)


def test_stacked_tensors() -> None:
    q, k, v = draw(6, 6, heads_k=4)
    qkv = torch.stack([q, k, v], dim=2).detach().requires_grad_()
    kv = torch.stack([k, v], dim=2).detach().requires_grad_()
    out = flash_attn_func(q, k, v, causal=True)
    dq, dk, dv = torch.autograd.grad(out.square().sum(), (q, k, v))

    stacked = flash_attn_qkvpacked_func(qkv, causal=True)
    assert torch.equal(stacked, out)
    (grad,) = torch.autograd.grad(stacked.square().sum(), qkv)
    assert_same(grad, torch.stack([dq, dk, dv], dim=2))

    stacked = flash_attn_kvpacked_func(q, kv, causal=True)
    assert torch.equal(stacked, out)
    (grad,) = torch.autograd.grad(stacked.square().sum(), kv)
    assert_same(grad, torch.stack([dk, dv], dim=2))


def test_layouts_are_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither operands nor results are copied, and the result is contiguous again."""
    q, k, v = (x.detach() for x in draw())
    seen: list[Tensor] = []
    attention = attend.attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        result = attention(query, key, value, **options)
        seen.extend((query, key, value, result))
        return result

    monkeypatch.setattr(attend, "attention", spy)
    out = flash_attn_func(q, k, v)
    addresses = [tensor.data_ptr() for tensor in seen]
    assert addresses == [tensor.data_ptr() for tensor in (q, k, v, out)]
    assert out.is_contiguous()


def test_a_strided_last_dimension_is_copied() -> None:
    plain = [x.detach() for x in draw()]
    strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in plain]
    assert strided[0].stride(-1) != 1
    assert torch.equal(flash_attn_func(*strided), flash_attn_func(*plain))


def torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention by torch in the tensors' own dtype."""
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    hidden = ~visible_keys(q.shape[2], k.shape[2], causal=True)
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_within_budget(dtype: torch.dtype) -> None:
    inputs = draw(33, 47, dim=40, dtype=dtype)
    grad = torch.randn(2, 33, 4, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    out, lse, _ = flash_attn_func(*inputs, causal=True, return_attn_probs=True)
    assert out.dtype == dtype and lse.dtype == torch.float32
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact, _ = plain_batch(*exact_inputs, causal=True)
    baseline = torch_attention(*inputs)
    assert_within_budget(out, exact, baseline)
    grads = torch.autograd.grad(out, inputs, grad)
    exact_grads = torch.autograd.grad(exact, exact_inputs, grad.double())
    baseline_grads = torch.autograd.grad(baseline, inputs, grad)
    for name, *found in zip("qkv", grads, exact_grads, baseline_grads, strict=True):
        assert_within_budget(*found, factor=GRADIENT_FACTOR, name=f"d{name}")


@pytest.mark.parametrize("dims", [(1, 1), (40, 40), (24, 56), (512, 512)], ids=str)
def test_head_dims(dims: tuple[int, int]) -> None:
    q, k, v = draw(dim=dims[0], dim_v=dims[1])
    assert_same(flash_attn_func(q, k, v), plain_batch(q, k, v)[0])


def test_autocast() -> None:
    q, k, v = (x.detach() for x in draw(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        assert flash_attn_func(q, k, v).dtype == torch.bfloat16


WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "q of rank 3": (
        ValueError,
        r"q: must be a tensor \[batch, seqlen, heads",
        {"q": torch.ones(5, 4, 8)},
    ),
    "k is an array": (ValueError, "k: must be a tensor .* got list", {"k": [1.0]}),
    "k's heads": (
        ValueError,
        "key: its number of heads must divide",
        {"k": torch.ones(2, 7, 3, 8), "v": torch.ones(2, 7, 3, 8)},
    ),
    "k's dtype": (
        TypeError,
        "key: must have query's dtype",
        {"k": torch.ones(2, 7, 2, 8, dtype=torch.bfloat16)},
    ),
    "v's length": (ValueError, "value: must have key's length", {"v": torch.ones(2, 6, 2, 8)}),
    "integers": (
        TypeError,
        "query: must be float64",
        {"q": torch.ones(2, 5, 4, 8, dtype=torch.int32)},
    ),
    "window of three": (ValueError, "window_size: must be a pair", {"window_size": (1, 2, 3)}),
    "window of floats": (TypeError, "window_size: must hold two ints", {"window_size": (1.5, 0)}),
    "dropout of 1": (ValueError, "dropout_p: must be in", {"dropout_p": 1.0}),
    "slopes": (ValueError, "alibi_slopes: must have shape", {"alibi_slopes": torch.ones(3)}),
    "softcap": (ValueError, "softcap: must be finite", {"softcap": float("nan")}),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes(name: str) -> None:
    error, message, wrong = WRONG[name]
    q, k, v = (x.detach().float() for x in draw())
    with pytest.raises(error, match=message):
        flash_attn_func(**{"q": q, "k": k, "v": v, **wrong})


def test_mistakes_in_stacks() -> None:
    with pytest.raises(ValueError, match=r"qkv: must be a tensor \[batch, seqlen, 3"):
        flash_attn_qkvpacked_func(torch.ones(2, 5, 2, 4, 8))
    with pytest.raises(ValueError, match=r"kv: must be a tensor \[batch, seqlen, 2"):
        flash_attn_kvpacked_func(torch.ones(2, 5, 4, 8), torch.ones(2, 5, 4, 8))
