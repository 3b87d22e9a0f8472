"""Problem: checks every argument once, and says what a call is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from shapes import CASES, AttentionCase
from wrong_calls import WRONG_CALLS, WrongCall

from fused_attention import Band, attention
from fused_attention.checks import MAX_DROPOUT
from fused_attention.philox import dropout_threshold
from fused_attention.prepare import prepare
from fused_attention.problem import Problem


def problem_of(case: AttentionCase, **changes: Any) -> Problem:
    inputs = case.make()
    options = {**inputs.options, **changes}
    options = {k: v for k, v in options.items() if k not in ("dropout_seed", "dropout_offset")}
    return prepare(inputs.query, inputs.key, inputs.value, **options)[0]


@pytest.mark.parametrize("wrong", WRONG_CALLS, ids=str)
def test_wrong_argument_is_named_with_rule_and_value(wrong: WrongCall) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        wrong.call(**wrong.changes)
    message = str(caught.value)
    assert caught.type is wrong.error, message
    assert message.startswith(f"{wrong.argument}: "), message
    rule, _, got = message.partition(", got ")
    assert wrong.rule in rule, message
    assert wrong.value in got, message
    assert "\n" not in message and len(message) < 200, message


@pytest.mark.parametrize("case", CASES, ids=str)
def test_valid_cases_pass_and_describe_themselves(case: AttentionCase) -> None:
    problem = problem_of(case)
    lens_q = case.seq_lens_q if case.packed else [case.len_q]
    assert problem.dtype == case.dtype
    assert problem.batch == (len(lens_q) if case.packed else case.batch)
    assert problem.heads_q == case.heads_q
    assert problem.packed == case.packed
    assert problem.band == case.band
    assert problem.scale == (case.head_dim**-0.5 if case.scale is None else case.scale)
    assert problem.softcap == case.softcap
    assert problem.dropout_p == case.dropout_p
    assert (problem.bias_shape is not None) == (case.bias is not None)
    assert problem.has_alibi == (case.alibi is not None)
    assert problem.has_sinks == case.sinks
    assert problem.has_kv_lengths == (case.kv_lengths is not None)
    assert problem.has_band_offsets == (case.band_offsets is not None)
    assert not problem.needs_grad


def test_strides_of_an_empty_operand_mean_nothing() -> None:
    nothing = torch.zeros(()).expand(2, 4, 0, 5)
    assert nothing.stride(-1) == 0 and nothing.is_contiguous()
    assert attention(nothing, torch.zeros(2, 2, 3, 5), torch.zeros(2, 2, 3, 5)).shape == (
        2,
        4,
        0,
        5,
    )


def test_prints_on_one_line() -> None:
    case = AttentionCase("", heads_q=6, heads_kv=2, len_q=5, len_k=7, value_dim=8)
    case_options: dict[str, Any] = {
        "band": Band.causal(),
        "softcap": 30.0,
        "bias": torch.zeros(1, 6, 5, 7, dtype=torch.bfloat16, requires_grad=True),
        "dropout_p": 0.25,
        "kv_lengths": torch.tensor([1, 2]),
        "deterministic": True,
    }
    assert str(problem_of(case, **case_options)) == (
        "float32 on cpu, B=2 H=6/2 Lq=5 Lk=7 D=16/8, band causal, scale 0.25, softcap 30, "
        "bias bfloat16 [1, 6, 5, 7] with gradient, dropout 0.25, kv_lengths, gradient, "
        "deterministic"
    )


def test_as_dict_survives_json() -> None:
    problem = problem_of(AttentionCase("", bias="1hqk", band=Band.window(3, None)))
    loaded = json.loads(json.dumps(problem.as_dict()))
    assert loaded["dtype"] == loaded["bias_dtype"] == "float32"
    assert loaded["band"] == {"left": 3, "right": 1 << 30, "offset": None}
    assert loaded["bias_shape"] == [1, 2, 35, 35]
    assert set(loaded) == set(Problem._fields)


def test_is_frozen() -> None:
    with pytest.raises(AttributeError):
        problem_of(AttentionCase("")).batch = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", ["query", "key", "value", "bias", "sinks"])
def test_needs_grad_where_an_input_does(name: str) -> None:
    inputs = AttentionCase("", bias="11qk", sinks=True).make()
    operands = {name: getattr(inputs, name) for name in ("query", "key", "value", "bias", "sinks")}
    operands[name] = operands[name].requires_grad_()
    problem, _ = prepare(**operands)
    assert problem.needs_grad
    assert problem.bias_needs_grad == (name == "bias")
    with torch.no_grad():
        assert not prepare(**operands)[0].needs_grad
        assert not prepare(**operands)[0].bias_needs_grad


def test_deterministic_follows_torch() -> None:
    case = AttentionCase("")
    assert not problem_of(case).deterministic
    assert problem_of(case, deterministic=True).deterministic
    torch.use_deterministic_algorithms(True)
    try:
        assert problem_of(case).deterministic
    finally:
        torch.use_deterministic_algorithms(False)


def test_largest_dropout_still_keeps_something() -> None:
    largest = torch.tensor(MAX_DROPOUT, dtype=torch.float64).nextafter(torch.zeros(()).double())
    assert dropout_threshold(largest.item()) == 65535
    query = torch.randn(1, 1, 3, 4)
    assert attention(query, query, query, dropout_p=largest.item()).isfinite().all()
    with pytest.raises(ValueError, match="dropout_p"):
        attention(query, query, query, dropout_p=MAX_DROPOUT)


@pytest.mark.parametrize("name", ["bias", "kv_lengths"])
def test_packed_batches_take_no_dense_features(name: str) -> None:
    inputs = AttentionCase("", seq_lens_q=(2, 3)).make()
    dense = {"bias": torch.zeros(1, 1, 1, 1), "kv_lengths": torch.tensor([1, 1])}
    with pytest.raises(ValueError, match=f"^{name}: cannot be used with packed sequences"):
        prepare(inputs.query, inputs.key, inputs.value, **inputs.options, **{name: dense[name]})
