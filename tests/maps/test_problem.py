"""What attention_maps refuses, and what it says of a problem."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from wrong_calls import WrongCall, ints, meta, rand

from fused_attention import Band, attention_maps
from fused_attention.maps.operator import BACKENDS
from fused_attention.maps.problem import MapsProblem
from fused_attention.selection import choose, explain
from fused_attention.support import sample_problem


def dense(**changes: Any) -> Any:
    """attention_maps on [2, 4, 5, 8] and [2, 2, 7, 8], with these arguments replaced."""
    arguments = {"query": rand(2, 4, 5, 8), "key": rand(2, 2, 7, 8), "lse": rand(2, 4, 5)}
    return attention_maps(**{**arguments, "argmax": True, **changes})


def packed(**changes: Any) -> Any:
    """On sequences of 2 and 3 queries, 4 and 3 keys."""
    arguments = {
        "query": rand(5, 4, 8),
        "key": rand(7, 2, 8),
        "lse": rand(4, 5),
        "cu_seqlens_q": ints(0, 2, 5),
        "cu_seqlens_k": ints(0, 4, 7),
    }
    return attention_maps(**{**arguments, "argmax": True, **changes})


WRONG_CALLS = [
    WrongCall("query", "must be a torch.Tensor", "list", {"query": [1.0]}, TypeError),
    WrongCall("key", "query's batch 2", "3", {"key": rand(3, 2, 7, 8)}),
    WrongCall("key", "divide query's 4", "3", {"key": rand(2, 3, 7, 8)}),
    WrongCall("lse", "must be a torch.Tensor", "NoneType", {"lse": None}, TypeError),
    WrongCall(
        "lse", "torch.float32 for queries", "float64", {"lse": rand(2, 4, 5).double()}, TypeError
    ),
    WrongCall("lse", "query's device cpu", "meta", {"lse": meta(2, 4, 5)}),
    WrongCall("lse", "[batch, heads, length] = [2, 4, 5]", "(2, 5, 4)", {"lse": rand(2, 5, 4)}),
    WrongCall("lse", "[heads, total] = [4, 5]", "(5, 4)", {"lse": rand(5, 4)}, call=packed),
    WrongCall("rows", "sequence of ints", "int", {"rows": 3}, TypeError),
    WrongCall("rows", "sequence of ints", "float 1.0", {"rows": [0, 1.0]}, TypeError),
    WrongCall("rows", "sequence of ints", "bool True", {"rows": [True]}, TypeError),
    WrongCall("rows", "sequence of ints", "str", {"rows": "12"}, TypeError),
    WrongCall("rows", "in [0, 5)", "5", {"rows": [0, 5]}),
    WrongCall("rows", "in [0, 5)", "-1", {"rows": [-1]}),
    WrongCall("rows", "in [0, 5)", "5 or more", {"rows": torch.tensor([0, 9])}),
    WrongCall("rows", "in [0, 5)", "a negative number", {"rows": torch.tensor([0, -(2**40)])}),
    WrongCall("rows", "must be 1-D", "(1, 1)", {"rows": ints(0)[None]}),
    WrongCall("rows", "integer tensor", "float32", {"rows": rand(2)}, TypeError),
    WrongCall("rows", "query's device cpu", "meta", {"rows": meta(2, dtype=torch.int32)}),
    WrongCall("rows", "must be given where", "None", {"argmax": False}),
    WrongCall("rows", "in [0, 5)", "7", {"rows": [7]}, call=packed),
    WrongCall("heads", "in [0, 4)", "4", {"heads": [4]}),
    WrongCall("heads", "in [0, 4)", "4 or more", {"heads": ints(4)}),
    WrongCall("top_k", "must be an int", "2.0", {"top_k": 2.0}, TypeError),
    WrongCall("top_k", "in [0, 2**30)", "-1", {"top_k": -1}),
    WrongCall("kv_lengths", "in [0, 7]", "8 at index 1", {"kv_lengths": ints(0, 8)}),
    WrongCall("bias", "packed", "both", {"bias": rand(1, 1, 1, 1)}, call=packed),
    WrongCall("band", "excludes causal", "causal=True", {"band": Band(), "causal": True}),
    WrongCall(
        "cu_seqlens_k", "end within the 7", "8", {"cu_seqlens_k": ints(0, 1, 8)}, call=packed
    ),
    WrongCall("backend", "'cpu', 'triton', 'reference'", "'cuda_sm80'", {"backend": "cuda_sm80"}),
]


@pytest.mark.parametrize("wrong", WRONG_CALLS, ids=str)
def test_wrong_arguments_are_named_with_their_values(wrong: WrongCall) -> None:
    call = dense if wrong.call.__module__ == "wrong_calls" else wrong.call
    with pytest.raises(wrong.error) as error:
        call(**wrong.changes)
    message = str(error.value)
    assert message.startswith(f"{wrong.argument}: ") and message.count("\n") == 0
    assert wrong.rule in message and wrong.value in message, message


def problem(**changes: Any) -> MapsProblem:
    attention = sample_problem(changes.pop("device", "cpu"), changes.pop("dtype", "fp32"))
    return MapsProblem(attention, attention.heads_q, **changes)


def test_a_problem_prints_itself_and_becomes_json() -> None:
    one = problem(rows=3, entropy=True, top_k=2)
    assert str(one).startswith("weights of 3 rows, entropy, top 2 of 4 heads: float32 on cpu")
    assert json.loads(json.dumps(one.as_dict()))["attention"]["head_dim"] == 64


def test_backends_say_why_not() -> None:
    assert choose(problem(argmax=True), BACKENDS).NAME == "cpu"
    reasons = explain(
        problem(argmax=True, top_k=129, dtype="fp64", device="meta"), BACKENDS
    ).reasons
    assert "runs on CPU tensors, got meta" in reasons["cpu"]
    assert "top_k goes up to 128, got 129" in reasons["triton"]
    assert "computes in fp16, bf16 and fp32, got float64" in reasons["triton"]
    assert reasons["reference"] == []
    wide = problem()._replace(attention=sample_problem("cpu", "fp32")._replace(head_dim=513))
    assert choose(wide, BACKENDS).NAME == "reference"
    with pytest.raises(NotImplementedError, match="head and value dims go up to 512, got 513"):
        choose(wide, BACKENDS, "cpu")
