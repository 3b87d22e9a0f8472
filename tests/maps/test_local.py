"""local_attention_maps against the weights that local_attention applies to its values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from largest_tensor import LargestTensor
from local_case import LocalCase, LocalInputs
from local_cases import CASES, random_case
from torch import Tensor
from weights_case import ALL, assert_facts_of
from wrong_calls import WrongCall, ints, meta, rand

from fused_attention import local_attention, local_attention_maps
from fused_attention.maps import blocks

LENGTHS = LocalCase("rising_lengths", width=2.0, positions="rising", key_lengths=(31, 12))
MORE_CASES = [LENGTHS, *(random_case(seed, torch.float64) for seed in range(8))]


def dense(inputs: LocalInputs) -> tuple[Tensor, Tensor]:
    """The weights as what attention makes of unit vectors, and lse."""
    value = torch.eye(inputs.case.len_k, dtype=inputs.query.dtype)
    value = value.expand(*inputs.key.shape[:-1], -1)
    operands = (inputs.query, inputs.key, value, inputs.position)
    options = {**inputs.options, "sigma": inputs.sigma}
    return local_attention(*operands, return_lse=True, backend="reference", **options)


def maps(inputs: LocalInputs, lse: Tensor, **changes: Any) -> Any:
    operands = (inputs.query, inputs.key, inputs.position, lse)
    options = {**inputs.options, "sigma": inputs.sigma, **changes}
    return local_attention_maps(*operands, **options)


@pytest.mark.parametrize("case", [c for c in (*CASES, *MORE_CASES) if c.len_k], ids=str)
def test_facts_are_those_of_the_weights(case: LocalCase, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case.with_dtype(torch.float64).make()
    weights, lse = dense(inputs)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 7 * case.batch * case.heads_q * case.len_k * 8)
    rows = [*range(case.len_q - 1, -1, -3), *range(0, case.len_q, 2)]
    visible = inputs._visible().expand_as(weights)
    assert_facts_of(weights, visible, maps(inputs, lse, rows=rows, **ALL), rows)
    if case.heads_q > 1:
        heads = [case.heads_q - 1, 1, 0]
        found = maps(inputs, lse, rows=rows, heads=heads, **ALL)
        assert_facts_of(weights[:, heads], visible[:, heads], found, rows)


def test_weights_of_luong_sum_to_less_than_one_and_their_entropy_is_of_them() -> None:
    """One query on equal keys: weights g / n with known Gaussians."""
    query, key, position = (
        torch.zeros(1, 1, 1, 4),
        torch.zeros(1, 1, 9, 4),
        torch.full((1, 1, 1), 4.0),
    )
    terms = {"width": 2.0, "sigma": 1.0}
    _, lse = local_attention(query, key, key, position, return_lse=True, **terms)
    asked = {"rows": [0], "entropy": True, "argmax": True, "column_mean": True}
    found = local_attention_maps(query, key, position, lse, **asked, **terms)
    expected = torch.zeros(9)
    expected[2:7] = torch.tensor([math.exp(-(t**2) / 2) / 5 for t in (-2, -1, 0, 1, 2)])
    assert found.weights is not None and found.entropy is not None
    torch.testing.assert_close(found.weights[0, 0, 0], expected)
    torch.testing.assert_close(found.entropy[0, 0, 0], torch.special.entr(expected).sum())
    assert found.argmax is not None and found.argmax.item() == 4
    plain = local_attention_maps(
        query, key, position, lse, width=2.0, sigma=math.inf, entropy=True, argmax=True
    )
    assert plain.entropy is not None and plain.argmax is not None
    torch.testing.assert_close(plain.entropy.item(), math.log(5))
    assert plain.argmax.item() == 2, "of equal weights the lower key"


def test_what_the_door_takes_is_taken_here() -> None:
    """16 bit, autocast and gradients."""
    low = LocalCase("low", dtype=torch.bfloat16, sigma="query").make()
    weights, lse = dense(low)
    found = maps(low, lse, rows=range(35), entropy=True)
    assert found.weights.dtype == found.entropy.dtype == torch.float32
    torch.testing.assert_close(found.weights.bfloat16(), weights, rtol=0.02, atol=1e-3)
    full = LocalCase("full", sigma="inf", positions="same").make()
    leaves = [x.requires_grad_() for x in full.leaves]
    with torch.autocast("cpu", torch.bfloat16):
        terms = {"width": 6.0, "sigma": math.inf}
        _, lse = local_attention(*leaves, return_lse=True, **terms)
        operands = (leaves[0], leaves[1], leaves[3], lse)
        found = local_attention_maps(*operands, column_mass=True, **terms)
    assert not found.column_mass.requires_grad
    torch.testing.assert_close(found.column_mass.sum(-1), torch.full((2, 2), 35.0))


@pytest.mark.parametrize("width", [5.0, math.inf])
def test_memory_is_linear_in_the_length(width: float) -> None:
    length = 1700
    query, key = rand(1, 1, length, 4), rand(1, 1, length, 4)
    position, lse = torch.rand(1, 1, length) * length, torch.full((1, 1, length), 9.0)
    with LargestTensor() as made:
        local_attention_maps(query, key, position, lse, width=width, sigma=2.0, rows=[5], **ALL)
    assert made.bytes <= blocks.BLOCK_BYTES < length * length * 4


def test_windows_that_lie_together_leave_the_other_keys_unread() -> None:
    length = 4000
    query, key = rand(1, 1, 40, 4), rand(1, 1, length, 4)
    position = 3000 + torch.rand(1, 1, 40) * 20
    key[:, :, :2900] = torch.nan
    _, lse = local_attention(query, key, key, position, width=8.0, return_lse=True)
    with LargestTensor() as made:
        found = local_attention_maps(query, key, position, lse, width=8.0, argmax=True)
    assert made.elements <= max(40 * 40, key.numel())
    assert found.argmax is not None and (found.argmax - position.long()).abs().max() <= 8


def test_no_keys_are_no_weights() -> None:
    query, key, lse = rand(1, 2, 3, 4), rand(1, 1, 0, 4), torch.full((1, 2, 3), -torch.inf)
    terms: dict[str, Any] = {"position": torch.zeros(1, 1, 3), "width": 1.0, "lse": lse}
    found = local_attention_maps(query, key, rows=[1], **terms, **ALL)
    assert found.weights is not None and found.weights.shape == (1, 2, 1, 0)
    assert torch.equal(found.entropy, torch.zeros(1, 2, 3))
    assert found.argmax is not None and (found.argmax == -1).all()


def call(**changes: Any) -> Any:
    """On [2, 4, 5, 8] and [2, 2, 7, 8], with these arguments replaced."""
    arguments: dict[str, Any] = {
        "query": rand(2, 4, 5, 8),
        "key": rand(2, 2, 7, 8),
        "position": torch.rand(2, 4, 5),
        "lse": rand(2, 4, 5),
        "width": 2.0,
    }
    return local_attention_maps(**{**arguments, "argmax": True, **changes})


WRONG_CALLS = [
    WrongCall("query", "must be a torch.Tensor", "list", {"query": [1.0]}, TypeError),
    WrongCall("key", "divide query's 4", "3", {"key": rand(2, 3, 7, 8)}),
    WrongCall("position", "[B, Hq or 1, Lq]", "(2, 5)", {"position": rand(2, 5)}),
    WrongCall("position", "finite", "nan", {"position": torch.full((2, 4, 5), torch.nan)}),
    WrongCall("width", "in [0, 2**30]", "-1", {"width": -1}),
    WrongCall("sigma", "at least 2**-30", "0.0", {"sigma": 0.0}),
    WrongCall("mode", "'luong', 'log_bias'", "'bahdanau'", {"mode": "bahdanau"}),
    WrongCall("lse", "[batch, heads, length] = [2, 4, 5]", "(2, 5)", {"lse": rand(2, 5)}),
    WrongCall("lse", "device cpu", "meta", {"lse": meta(2, 4, 5)}),
    WrongCall("heads", "in [0, 4)", "4", {"heads": [4]}),
    WrongCall("rows", "in [0, 5)", "9", {"rows": [9]}),
    WrongCall("rows", "must be given where", "None", {"argmax": False}),
    WrongCall("top_k", "in [0, 2**30)", "-1", {"top_k": -1}),
    WrongCall("key_lengths", "in [0, 7]", "8 at index 0", {"key_lengths": ints(8, 7)}),
]


@pytest.mark.parametrize("wrong", WRONG_CALLS, ids=str)
def test_wrong_arguments_are_named_with_their_values(wrong: WrongCall) -> None:
    with pytest.raises(wrong.error) as error:
        call(**wrong.changes)
    message = str(error.value)
    assert message.startswith(f"{wrong.argument}: ") and message.count("\n") == 0
    assert wrong.rule in message and wrong.value in message, message
