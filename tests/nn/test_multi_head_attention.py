"""MultiHeadAttention is nn.MultiheadAttention: parameters, call, results, gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from budget import GRADIENT_FACTOR, assert_within_budget
from torch import Tensor, nn

from fused_attention.nn import MultiHeadAttention, recognition

LEN_Q, LEN_K, BATCH, HEADS, DIM = 5, 7, 2, 4, 16
Call = dict[str, Any]


@pytest.fixture(autouse=True)
def masks_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognition, "_FEWEST_SCORES", 0)


def pair(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.Module, nn.Module]:
    """torch's module and ours with the same parameters, biases other than 0 among them."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(DIM, HEADS, dtype=dtype, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours = MultiHeadAttention(DIM, HEADS, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(
    batch_first: bool = True, kdim: int = DIM, vdim: int = DIM, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    shapes = ((BATCH, LEN_Q, DIM), (BATCH, LEN_K, kdim), (BATCH, LEN_K, vdim))
    tensors = (torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)
    return tuple((x if batch_first else x.transpose(0, 1)).requires_grad_() for x in tensors)


def padding(*lengths: int) -> Tensor:
    return torch.arange(LEN_K) >= torch.tensor(lengths)[:, None]


def causal() -> Tensor:
    return torch.ones(LEN_Q, LEN_K, dtype=torch.bool).triu(1)


def hides(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, -torch.inf)


MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "length first": {"batch_first": False},
    "no biases": {"bias": False},
    "other key and value": {"kdim": 6, "vdim": 10},
    "an added key": {"add_bias_kv": True},
    "a key of zeros": {"add_zero_attn": True},
    "both added keys": {"add_bias_kv": True, "add_zero_attn": True},
}
MASKS: dict[str, Callable[[], Call]] = {
    "no mask": lambda: {},
    "padding": lambda: {"key_padding_mask": padding(4, 7)},
    "padding to add": lambda: {"key_padding_mask": hides(padding(4, 7))},
    "left padding": lambda: {"key_padding_mask": ~padding(3, 0)},
    "causal": lambda: {"attn_mask": causal()},
    "causal to add": lambda: {"attn_mask": hides(causal())},
    "causal and known": lambda: {"attn_mask": causal(), "is_causal": True},
    "causal and padding": lambda: {"attn_mask": causal(), "key_padding_mask": padding(3, 6)},
    "a window": lambda: {"attn_mask": causal() | causal().logical_not().tril(-3)},
    "a window and padding": lambda: {
        "attn_mask": causal() | causal().logical_not().tril(-3),
        "key_padding_mask": padding(6, 7),
    },
    "a bias": lambda: {"attn_mask": torch.randn(LEN_Q, LEN_K, dtype=torch.float64)},
    "a bias per head": lambda: {
        "attn_mask": torch.randn(BATCH * HEADS, LEN_Q, LEN_K, dtype=torch.float64),
        "key_padding_mask": hides(padding(4, 7)),
    },
}


def results(module: nn.Module, tensors: tuple[Tensor, ...], call: Call) -> list[Tensor]:
    """out, the weights where asked for, and all gradients."""
    module.zero_grad()
    out, weights = module(*tensors, **call)
    found = [out] if weights is None else [out, weights]
    loss = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x).to(x)).sum() for x in found)
    variables = [*tensors, *module.parameters()]
    return found + list(torch.autograd.grad(loss, variables, allow_unused=True))


# Given is_causal and no wish for weights, torch hides an added key from most rows.
CASES = [
    (module, mask, need_weights)
    for module in MODULES
    for mask in MASKS
    for need_weights in (False, True)
    if need_weights or "key" not in module or mask != "causal and known"
]


@pytest.mark.parametrize(("module", "mask", "need_weights"), CASES)
def test_is_torchs(module: str, mask: str, need_weights: bool) -> None:
    options = {"batch_first": True, **MODULES[module]}
    call = {**MASKS[mask](), "need_weights": need_weights}
    theirs, ours = pair(**options)
    shape = {name: options[name] for name in ("batch_first", "kdim", "vdim") if name in options}
    tensors = inputs(**shape)
    torch.testing.assert_close(results(ours, tensors, call), results(theirs, tensors, call))


@pytest.mark.parametrize("average", [True, False], ids=["mean", "each head"])
@pytest.mark.parametrize("same", [True, False], ids=["self-attention", "same key and value"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_ways_to_call(batched: bool, same: bool, average: bool) -> None:
    theirs, ours = pair(batch_first=True)
    _, key, _ = inputs()
    query = key if same else inputs()[0]
    call: Call = {"average_attn_weights": average, "key_padding_mask": padding(4, 6)}
    if not batched:
        query, key = query[0], key[0]
        query = key if same else query
        call["key_padding_mask"] = call["key_padding_mask"][0]
    for found, exact in zip(
        ours(query, key, key, **call), theirs(query, key, key, **call), strict=True
    ):
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("need_weights", [False, True], ids=["", "weights"])
def test_is_as_exact_as_torchs(dtype: torch.dtype, need_weights: bool) -> None:
    theirs, ours = pair(dtype, batch_first=True)
    tensors = inputs(dtype=dtype)
    call: Call = {"key_padding_mask": padding(4, 7), "need_weights": need_weights}
    found, baseline = results(ours, tensors, call), results(theirs, tensors, call)
    exact = results(
        copy.deepcopy(theirs).double(),
        tuple(x.detach().double().requires_grad_() for x in tensors),
        call,
    )
    outputs = 1 + need_weights
    for n, triple in enumerate(zip(found, exact, baseline, strict=True)):
        factor = 2.0 if n < outputs else GRADIENT_FACTOR
        assert_within_budget(*triple, factor=factor, name=f"result {n}")


def test_same_seed_same_module() -> None:
    for options in ({}, {"kdim": 6, "add_bias_kv": True}, {"bias": False}):
        torch.manual_seed(7)
        theirs = nn.MultiheadAttention(DIM, HEADS, **options).state_dict()
        torch.manual_seed(7)
        ours = MultiHeadAttention(DIM, HEADS, **options).state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_rows_without_a_key_are_zero() -> None:
    _, ours = pair(batch_first=True)
    query, key, value = inputs()
    out, weights = ours(query, key, value, key_padding_mask=padding(0, 7))
    torch.testing.assert_close(out[0], ours.out_proj.bias.expand_as(out[0]))
    assert not weights[0].any()
    (out.sum() + weights.sum()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (query, key, value))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def test_dropout_is_for_training() -> None:
    ours = MultiHeadAttention(DIM, HEADS, dropout=0.5, batch_first=True)
    x = torch.randn(BATCH, LEN_K, DIM)
    torch.manual_seed(1)
    first, weights = ours(x, x, x)
    torch.manual_seed(1)
    assert torch.equal(first, ours(x, x, x)[0])
    assert not torch.equal(first, ours(x, x, x)[0])
    ours.eval()
    torch.testing.assert_close(ours(x, x, x)[1], weights)  # those before dropout
    assert torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])


@pytest.mark.parametrize("need_weights", [False, True], ids=["", "weights"])
def test_autocast(need_weights: bool) -> None:
    theirs, ours = pair(torch.float32, batch_first=True)
    tensors = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours(*tensors, need_weights=need_weights)
        expected = theirs(*tensors, need_weights=need_weights)
    for ours_, theirs_ in zip(found, expected, strict=True):
        if theirs_ is not None:
            assert ours_.dtype == theirs_.dtype
            torch.testing.assert_close(ours_, theirs_, rtol=0.05, atol=0.05)
    if need_weights:  # the sum of seven rounded weights
        sums = found[1].float().sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=2**-8)


def test_copies_and_pickles(tmp_path: Any) -> None:
    _, ours = pair(batch_first=True)
    query, key, value = inputs()
    torch.save(ours, tmp_path / "module.pt")
    for other in (copy.deepcopy(ours), torch.load(tmp_path / "module.pt", weights_only=False)):
        assert torch.equal(other(query, key, value)[0], ours(query, key, value)[0])


def test_prints_what_it_was_built_with() -> None:
    module = MultiHeadAttention(8, 2, bias=False, kdim=4, add_bias_kv=True, batch_first=True)
    assert repr(module).splitlines()[1].strip() == (
        "8, 2, kdim=4, batch_first=True, bias=False, add_bias_kv=True"
    )
    assert repr(MultiHeadAttention(8, 2)).splitlines()[1].strip() == "8, 2"
