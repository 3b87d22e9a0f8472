"""What additive_attention refuses, and what it says of a problem."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from additive_case import CASES, AdditiveCase
from wrong_calls import WrongCall, ints, meta, rand

from fused_attention import Band, additive_attention
from fused_attention.additive.operator import ORDER
from fused_attention.additive.problem import AdditiveProblem
from fused_attention.selection import choose, explain


def call(**changes: Any) -> Any:
    """additive_attention on [2, 4, 5, 8] and [2, 4, 7, 8], with these arguments replaced."""
    arguments = {"query_proj": rand(2, 4, 5, 8), "key_proj": rand(2, 4, 7, 8)}
    arguments |= {"value": rand(2, 4, 7, 6), "v": rand(8)}
    return additive_attention(**{**arguments, **changes})


WRONG_CALLS = [
    WrongCall("query_proj", "must be a torch.Tensor", "list", {"query_proj": [1.0]}, TypeError),
    WrongCall("query_proj", "[batch, length, dim] or", "(5, 8)", {"query_proj": rand(5, 8)}),
    WrongCall("key_proj", "must be 4-D [batch, heads", "(2, 7, 8)", {"key_proj": rand(2, 7, 8)}),
    WrongCall(
        "value",
        "must be 3-D [batch, length",
        "(2, 4, 7, 6)",
        {"query_proj": rand(2, 5, 8), "key_proj": rand(2, 7, 8)},
    ),
    WrongCall(
        "query_proj",
        "float64, float32",
        "int64",
        {"query_proj": torch.ones(2, 4, 5, 8, dtype=torch.int64)},
        TypeError,
    ),
    WrongCall(
        "key_proj",
        "query_proj's dtype torch.float32",
        "float16",
        {"key_proj": rand(2, 4, 7, 8).half()},
        TypeError,
    ),
    WrongCall("value", "query_proj's device cpu", "meta", {"value": meta(2, 4, 7, 6)}),
    WrongCall("key_proj", "contiguous in its last", "7", {"key_proj": rand(2, 4, 8, 7).mT}),
    WrongCall("key_proj", "batch and heads (2, 4)", "(3, 4)", {"key_proj": rand(3, 4, 7, 8)}),
    WrongCall("value", "batch and heads (2, 4)", "(2, 2)", {"value": rand(2, 2, 7, 6)}),
    WrongCall(
        "value",
        "batch (2,)",
        "(1,)",
        {"query_proj": rand(2, 5, 8), "key_proj": rand(2, 7, 8), "value": rand(1, 7, 6)},
    ),
    WrongCall(
        "query_proj",
        "at least 1 head",
        "0",
        {"query_proj": rand(2, 0, 5, 8), "key_proj": rand(2, 0, 7, 8), "value": rand(2, 0, 7, 6)},
    ),
    WrongCall("value", "key_proj's length 7", "6", {"value": rand(2, 4, 6, 6)}),
    WrongCall("key_proj", "query_proj's head_dim 8", "9", {"key_proj": rand(2, 4, 7, 9)}),
    WrongCall("v", "must be a torch.Tensor", "NoneType", {"v": None}, TypeError),
    WrongCall("v", "floating point", "int32", {"v": ints(*range(8))}, TypeError),
    WrongCall("v", "shape [8] or [4, 8]", "(4,)", {"v": rand(4)}),
    WrongCall(
        "v",
        "shape [8]",
        "(1, 8)",
        {
            "v": rand(1, 8),
            "query_proj": rand(2, 5, 8),
            "key_proj": rand(2, 7, 8),
            "value": rand(2, 7, 6),
        },
    ),
    WrongCall("v", "query_proj's device cpu", "meta", {"v": meta(8)}),
    WrongCall("bias", "shape [8]", "(4, 8)", {"bias": rand(4, 8)}),
    WrongCall("bias", "floating point", "int32", {"bias": ints(*range(8))}, TypeError),
    WrongCall("g", "shape []", "(1,)", {"g": rand(1)}),
    WrongCall("g", "must be a number", "str", {"g": "1"}, TypeError),
    WrongCall("key_lengths", "integer tensor", "float32", {"key_lengths": rand(2)}, TypeError),
    WrongCall("key_lengths", "2 entries", "3", {"key_lengths": ints(1, 2, 3)}),
    WrongCall(
        "key_lengths",
        "in [0, 7] (7 is key_proj's length)",
        "8 at index 1",
        {"key_lengths": ints(7, 8)},
    ),
    WrongCall("key_lengths", "in [0, 7]", "-1 at index 0", {"key_lengths": ints(-1, 8)}),
    WrongCall("band", "must be a Band", "tuple", {"band": (1, 2)}, TypeError),
    WrongCall("backend", "must be one of", "'fast'", {"backend": "fast"}),
]


@pytest.mark.parametrize("wrong", WRONG_CALLS, ids=str)
def test_wrong_argument_is_named_with_rule_and_value(wrong: WrongCall) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**wrong.changes)
    message = str(caught.value)
    assert caught.type is wrong.error, message
    assert message.startswith(f"{wrong.argument}: "), message
    rule, _, got = message.partition(", got ")
    assert wrong.rule in rule, message
    assert wrong.value in got, message
    assert "\n" not in message and len(message) < 200, message


@pytest.mark.parametrize("case", CASES, ids=str)
def test_problem_describes_itself(case: AdditiveCase) -> None:
    inputs = case.make()
    operands = (inputs.query, inputs.key, inputs.value, inputs.v.requires_grad_())
    problem = AdditiveProblem.from_tensors(*operands, **inputs.options)
    sizes = (case.batch, max(case.heads, 1), case.len_q, case.len_k, case.dim, case.value_dim)
    assert problem[2:8] == sizes and problem.band == case.band and problem.needs_grad
    assert "additive" in str(problem) and "gradient" in str(problem)
    assert json.loads(json.dumps(problem.as_dict()))["dtype"] == "float32"
    assert explain(problem, ORDER).chosen == choose(problem, ORDER).NAME


def test_a_plain_problem_prints_what_it_is() -> None:
    inputs = AdditiveCase("causal", band=Band.causal(), key_lengths=(3, 4)).make()
    operands = (inputs.query, inputs.key, inputs.value, inputs.v)
    assert str(AdditiveProblem.from_tensors(*operands, **inputs.options)) == (
        "float32 on cpu, additive, B=2 H=2 Lq=19 Lk=27 D=16 Dv=16, band causal, key_lengths"
    )
