"""additive_attention_maps against the weights that additive_attention applies to its values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from additive_case import CASES, AdditiveCase, AdditiveInputs
from largest_tensor import LargestTensor
from torch import Tensor
from weights_case import ALL, assert_facts_of
from wrong_calls import WrongCall, ints, meta, rand

from fused_attention import (
    Band,
    additive_attention,
    additive_attention_maps,
    merge_attention,
)
from fused_attention.additive.call import AdditiveCall
from fused_attention.additive.reference import additive_scores
from fused_attention.maps import blocks

MORE_CASES = (
    AdditiveCase("lengths_window", 2, 2, 40, 40, band=Band.window(4, 1), key_lengths=(23, 9)),
    AdditiveCase("farthest_band", band=Band.window(1, 1, offset=1 << 30)),
)


def dense(inputs: AdditiveInputs, **changes: Any) -> tuple[Tensor, Tensor]:
    """The weights as what attention makes of unit vectors, with their heads, and lse."""
    value = torch.eye(inputs.case.len_k, dtype=inputs.query.dtype)
    value = value.expand(*inputs.key.shape[:-1], -1)
    operands = (inputs.query, inputs.key, value, inputs.v)
    options = {**inputs.options, **changes}
    return additive_attention(*operands, return_lse=True, backend="reference", **options)


def maps(inputs: AdditiveInputs, lse: Tensor, **changes: Any) -> Any:
    operands = (inputs.query, inputs.key, inputs.v, lse)
    return additive_attention_maps(*operands, **{**inputs.options, **changes})


def block_of(rows: int, monkeypatch: pytest.MonkeyPatch, inputs: AdditiveInputs) -> None:
    """Blocks have so many queries."""
    heads, size = max(inputs.case.heads, 1), max(inputs.case.dim * 8, 8)
    row_bytes = inputs.query.shape[0] * heads * inputs.case.len_k * size
    monkeypatch.setattr(blocks, "BLOCK_BYTES", rows * row_bytes)


@pytest.mark.parametrize("case", [c for c in (*CASES, *MORE_CASES) if c.len_k], ids=str)
def test_facts_are_those_of_the_weights(
    case: AdditiveCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = case.with_dtype(torch.float64).make()
    weights, lse = dense(inputs)
    block_of(7, monkeypatch, inputs)
    rows = [*range(case.len_q - 1, -1, -3), *range(0, case.len_q, 2)]
    visible = inputs._visible()
    assert_facts_of(weights, visible, maps(inputs, lse, rows=rows, **ALL), rows)
    if case.heads > 1:
        heads = [case.heads - 1, 0]
        found = maps(inputs, lse, rows=rows, heads=heads, **ALL)
        assert_facts_of(weights[:, heads], visible[:, heads], found, rows)


@pytest.mark.parametrize("rows", [[5], [16, 2, 3, 4, 5, 6, 2], []])
def test_only_the_rows_asked_for_are_computed(
    rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = AdditiveCase("rows", dtype=torch.float64).make()
    weights, lse = dense(inputs)
    block_of(3, monkeypatch, inputs)
    computed: list[int] = []

    def counted(call: AdditiveCall) -> tuple[Tensor, Tensor]:
        computed.append(call.query.shape[2])
        return additive_scores(call)

    monkeypatch.setattr("fused_attention.maps.additive.additive_scores", counted)
    found = maps(inputs, lse, rows=torch.tensor(rows).long())
    torch.testing.assert_close(found.weights, weights[..., rows, :], rtol=0, atol=1e-12)
    assert found.entropy is None
    assert sum(computed) == len(set(rows)) and max(computed, default=0) <= 3


def test_what_the_door_takes_is_taken_here() -> None:
    """bias, g, 16 bit, autocast and gradients."""
    inputs = AdditiveCase("extras", dtype=torch.float64, key_lengths=(27, 4)).make()
    extras: dict[str, Any] = {"bias": rand(16, dtype=torch.float64), "g": 1.7}
    weights, lse = dense(inputs, **extras)
    visible = inputs._visible()
    assert_facts_of(weights, visible, maps(inputs, lse, rows=[3], **ALL, **extras), [3])
    low = AdditiveCase("low", dtype=torch.bfloat16).make()
    weights, lse = dense(low)
    found = maps(low, lse, rows=range(19), entropy=True)
    assert found.weights.dtype == found.entropy.dtype == torch.float32
    torch.testing.assert_close(found.weights.bfloat16(), weights, rtol=0.02, atol=1e-3)
    full = AdditiveCase("full").make()
    leaves = [x.requires_grad_() for x in (full.query, full.key, full.v)]
    with torch.autocast("cpu", torch.bfloat16):
        _, lse = additive_attention(*leaves[:2], full.value, leaves[2], return_lse=True)
        found = additive_attention_maps(*leaves, lse, column_mass=True)
    assert not found.column_mass.requires_grad
    torch.testing.assert_close(found.column_mass.sum(-1), torch.full((2, 2), 19.0))


@pytest.mark.parametrize("first", [0, 3])
def test_of_equal_weights_the_lower_key_comes_first(first: int) -> None:
    """Behind a band that leaves out keys, too; where there are no more keys stand -1 and 0."""
    query, key, v = torch.zeros(1, 2, 4), torch.zeros(1, 6, 4), torch.ones(4)
    band = Band.window(0, 2, offset=first)
    _, lse = additive_attention(query, key, key, v, band=band, return_lse=True)
    found = additive_attention_maps(query, key, v, lse, band=band, argmax=True, top_k=4)
    assert found.argmax is not None and found.top_indices is not None
    assert found.argmax.tolist() == [[first, first + 1]]
    expected = [[first + row + n if n < 3 and first + row + n < 6 else -1 for n in range(4)]
                for row in range(2)]  # fmt: skip
    assert found.top_indices.tolist() == [expected]
    assert found.top_weights is not None
    assert torch.equal(found.top_weights == 0.0, found.top_indices == -1)


def test_no_keys_are_no_weights() -> None:
    query, key, lse = rand(1, 2, 4), rand(1, 0, 4), torch.full((1, 2), -torch.inf)
    found = additive_attention_maps(query, key, rand(4), lse, rows=[1], **ALL)
    assert found.weights is not None and found.weights.shape == (1, 1, 0)
    assert found.column_mean is not None and found.column_mean.shape == (1, 0)
    assert torch.equal(found.entropy, torch.zeros(1, 2))
    assert found.argmax is not None and found.argmax.tolist() == [[-1, -1]]
    assert found.top_indices is not None and (found.top_indices == -1).all()


def test_halves_of_the_keys_add_up() -> None:
    inputs = AdditiveCase("halves", heads=0).make()
    parts = [(inputs.key[:, part], inputs.value[:, part]) for part in (slice(9), slice(9, 27))]
    results = [additive_attention(inputs.query, *part, inputs.v, return_lse=True) for part in parts]
    _, lse = merge_attention(*[x.unsqueeze(1) for result in results for x in result])
    lse = lse.squeeze(1)
    whole = maps(inputs, lse, entropy=True)
    first, second = (
        additive_attention_maps(inputs.query, key, inputs.v, lse, entropy=True) for key, _ in parts
    )
    torch.testing.assert_close(first.entropy + second.entropy, whole.entropy)


def test_memory_is_linear_in_the_length() -> None:
    length = 1700
    query, key = rand(1, length, 8), rand(1, length, 8)
    v, lse = rand(8), torch.full((1, length), 9.0)
    with LargestTensor() as made:
        additive_attention_maps(query, key, v, lse, rows=[5], **ALL)
    assert made.bytes <= blocks.BLOCK_BYTES < length * length * 4


def call(**changes: Any) -> Any:
    """On [2, 3, 5, 8] and [2, 3, 7, 8], with these arguments replaced."""
    arguments: dict[str, Any] = {
        "query_proj": rand(2, 3, 5, 8),
        "key_proj": rand(2, 3, 7, 8),
        "v": rand(8),
        "lse": rand(2, 3, 5),
    }
    return additive_attention_maps(**{**arguments, "argmax": True, **changes})


FLAT = {"query_proj": rand(2, 5, 8), "key_proj": rand(2, 7, 8), "lse": rand(2, 5)}
WRONG_CALLS = [
    WrongCall("query_proj", "must be a torch.Tensor", "list", {"query_proj": [1.0]}, TypeError),
    WrongCall("key_proj", "query_proj's batch and heads", "(3, 3)", {"key_proj": rand(3, 3, 7, 8)}),
    WrongCall("v", "must have shape [8]", "(9,)", {"v": rand(9)}),
    WrongCall("lse", "must be a torch.Tensor", "NoneType", {"lse": None}, TypeError),
    WrongCall("lse", "[batch, heads, length] = [2, 3, 5]", "(2, 5)", {"lse": rand(2, 5)}),
    WrongCall("lse", "[batch, length] = [2, 5]", "(2, 1, 5)", {**FLAT, "lse": rand(2, 1, 5)}),
    WrongCall("lse", "device cpu", "meta", {"lse": meta(2, 3, 5)}),
    WrongCall("lse", "torch.float32", "float64", {"lse": rand(2, 3, 5).double()}, TypeError),
    WrongCall("heads", "has no heads", "[0]", {**FLAT, "heads": [0]}),
    WrongCall("heads", "in [0, 3)", "3", {"heads": [3]}),
    WrongCall("heads", "in [0, 3)", "3 or more", {"heads": ints(3)}),
    WrongCall("rows", "in [0, 5)", "a negative number", {"rows": ints(-1)}),
    WrongCall("rows", "must be given where", "None", {"argmax": False}),
    WrongCall("top_k", "must be an int", "True", {"top_k": True}, TypeError),
    WrongCall("key_lengths", "in [0, 7]", "8 at index 0", {"key_lengths": ints(8, 7)}),
    WrongCall("band", "must be a Band", "str", {"band": "causal"}, TypeError),
]


@pytest.mark.parametrize("wrong", WRONG_CALLS, ids=str)
def test_wrong_arguments_are_named_with_their_values(wrong: WrongCall) -> None:
    with pytest.raises(wrong.error) as error:
        call(**wrong.changes)
    message = str(error.value)
    assert message.startswith(f"{wrong.argument}: ") and message.count("\n") == 0
    assert wrong.rule in message and wrong.value in message, message
