"""What local_attention refuses, and what it says of a problem."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from local_case import LocalCase
from local_cases import CASES
from wrong_calls import WrongCall, ints, meta, rand

from fused_attention import local_attention
from fused_attention.local import explain_local
from fused_attention.local.operator import ORDER
from fused_attention.local.problem import LocalProblem


def call(**changes: Any) -> Any:
    """local_attention on [2, 4, 5, 8] and [2, 2, 7, 8], with these arguments replaced."""
    arguments = {"query": rand(2, 4, 5, 8), "key": rand(2, 2, 7, 8), "value": rand(2, 2, 7, 6)}
    arguments |= {"position": rand(2, 4, 5), "width": 3}
    return local_attention(**{**arguments, **changes})


def filled(value: float, *shape: int) -> torch.Tensor:
    """Ones but for one number."""
    tensor = torch.ones(shape)
    tensor[..., -1] = value
    return tensor


WRONG_CALLS = [
    WrongCall("query", "must be a torch.Tensor", "list", {"query": [1.0]}, TypeError),
    WrongCall("query", "must be 4-D", "(5, 8)", {"query": rand(5, 8)}),
    WrongCall("key", "dtype torch.float32", "float16", {"key": rand(2, 2, 7, 8).half()}, TypeError),
    WrongCall("value", "device cpu", "meta", {"value": meta(2, 2, 7, 6)}),
    WrongCall("key", "contiguous in its last", "7", {"key": rand(2, 2, 8, 7).mT}),
    WrongCall("key", "batch 2", "3", {"key": rand(3, 2, 7, 8)}),
    WrongCall("key", "must divide query's 4", "3", {"key": rand(2, 3, 7, 8),
                                                    "value": rand(2, 3, 7, 6)}),
    WrongCall("value", "key's length 7", "6", {"value": rand(2, 2, 6, 6)}),
    WrongCall("key", "head_dim 8", "9", {"key": rand(2, 2, 7, 9)}),
    WrongCall("position", "must be a torch.Tensor", "float", {"position": 1.0}, TypeError),
    WrongCall("position", "[B, Hq or 1, Lq]", "(2, 5)", {"position": rand(2, 5)}),
    WrongCall("position", "[2, 4, 5] or [2, 1, 5]", "(2, 2, 5)", {"position": rand(2, 2, 5)}),
    WrongCall("position", "device cpu", "meta", {"position": meta(2, 4, 5)}),
    WrongCall("position", "floating point or integer", "bool",
              {"position": torch.ones(2, 4, 5, dtype=torch.bool)}, TypeError),
    WrongCall("position", "finite", "nan", {"position": filled(math.nan, 2, 4, 5)}),
    WrongCall("position", "finite", "inf", {"position": filled(math.inf, 2, 1, 5)}),
    WrongCall("position", "in [-2**30, 2**30]", "-4000000000", {"position": filled(-4e9, 2, 1, 5)}),
    WrongCall("width", "must be a number", "str", {"width": "3"}, TypeError),
    WrongCall("width", "must be a number", "bool", {"width": True}, TypeError),
    WrongCall("width", "in [0, 2**30] or inf", "-1.0", {"width": -1}),
    WrongCall("width", "in [0, 2**30] or inf", "nan", {"width": math.nan}),
    WrongCall("width", "in [0, 2**30] or inf", "10000000000.0", {"width": 1e10}),
    WrongCall("sigma", "must be given with width 0", "None", {"width": 0}),
    WrongCall("sigma", "at least 2**-30", "0.0", {"sigma": 0}),
    WrongCall("sigma", "at least 2**-30", "-1.0", {"sigma": -1.0}),
    WrongCall("sigma", "at least 2**-30", "nan", {"sigma": math.nan}),
    WrongCall("sigma", "at least 2**-30", "0.0", {"sigma": filled(0.0, 4)}),
    WrongCall("sigma", "at least 2**-30", "-2.0", {"sigma": filled(-2.0, 2, 4, 5)}),
    WrongCall("sigma", "at least 2**-30", "nan", {"sigma": filled(math.nan, 4)}),
    WrongCall("sigma", "must be a number", "str", {"sigma": "1"}, TypeError),
    WrongCall("sigma", "[], [Hq] or [B, Hq, Lq]", "(5,)", {"sigma": rand(5)}),
    WrongCall("sigma", "device cpu", "meta", {"sigma": meta(4)}),
    WrongCall("mode", "'luong', 'log_bias'", "'Luong'", {"mode": "Luong"}),
    WrongCall("scale", "must be finite", "inf", {"scale": math.inf}),
    WrongCall("key_lengths", "integer tensor", "float32", {"key_lengths": rand(2)}, TypeError),
    WrongCall("key_lengths", "2 entries", "3", {"key_lengths": ints(1, 2, 3)}),
    WrongCall("key_lengths", "in [0, 7]", "8 at index 1", {"key_lengths": ints(7, 8)}),
    WrongCall("key_lengths", "in [0, 7]", "-1 at index 0", {"key_lengths": ints(-1, 8)}),
    WrongCall("backend", "must be one of", "'fast'", {"backend": "fast"}),
]  # fmt: skip


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


def test_positions_and_sigmas_of_any_real_dtype() -> None:
    expected = call(query=torch.ones(2, 4, 5, 8), key=torch.ones(2, 2, 7, 8),
                    value=torch.ones(2, 2, 7, 6).cumsum(2), position=torch.full((2, 1, 5), 3.0),
                    sigma=2.0)  # fmt: skip
    for dtype in (torch.int64, torch.uint8, torch.bfloat16, torch.float64):
        position, sigma = torch.full((2, 1, 5), 3, dtype=dtype), torch.tensor(2, dtype=dtype)
        actual = call(query=torch.ones(2, 4, 5, 8), key=torch.ones(2, 2, 7, 8),
                      value=torch.ones(2, 2, 7, 6).cumsum(2), position=position,
                      sigma=sigma)  # fmt: skip
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_problem_describes_itself(case: LocalCase) -> None:
    inputs = case.make()
    operands = (inputs.query.requires_grad_(), inputs.key, inputs.value, inputs.position)
    explanation = explain_local(*operands, sigma=inputs.sigma, **inputs.options)
    problem = explanation.problem
    assert isinstance(problem, LocalProblem)
    sizes = (case.batch, case.heads_q, case.heads_kv, case.len_q, case.len_k)
    assert problem[2:9] == (*sizes, case.head_dim, case.value_dim)
    assert (problem.width, problem.mode, problem.needs_grad) == (case.width, case.mode, True)
    assert json.loads(json.dumps(problem.as_dict()))["dtype"] == "float32"
    assert list(explanation.reasons) == [backend.NAME for backend in ORDER]
    assert explanation.chosen == "cpu" and explanation.reasons["reference"] == []


def test_a_plain_problem_prints_what_it_is() -> None:
    inputs = LocalCase("prints", heads_q=4, key_lengths=(3, 4)).make()
    operands = (inputs.query, inputs.key, inputs.value, inputs.position)
    options = {**inputs.options, "sigma": None}
    assert str(explain_local(*operands, **options).problem) == (
        "float32 on cpu, B=2 H=4/2 Lq=35 Lk=50 D=16, local luong width 6, sigma 3, scale 0.25, "
        "key_lengths"
    )


def test_a_backend_that_cannot_run_it_says_why() -> None:
    with pytest.raises(NotImplementedError, match="runs on CPU tensors, got meta"):
        call(backend="cpu", query=meta(2, 4, 5, 8), key=meta(2, 2, 7, 8), value=meta(2, 2, 7, 6),
             position=meta(2, 4, 5))  # fmt: skip
