"""Bugs planted in the kernels of csrc/cuda/sm80; every one must be reported, or show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_case import AttentionCase
from attention_inputs import AttentionInputs
from cuda import emulate

from fused_attention.masks import Band

from .attention_kernels import needs_nvcc
from .mutations import Edit, assert_found, change_all, drop, inside

pytestmark = needs_nvcc

CASE = AttentionCase(
    "causal",
    batch=1,
    heads_q=1,
    len_q=150,
    head_dim=64,
    dtype=torch.bfloat16,
    band=Band.causal(),
)
# The first queries see no key: their rows of dO are cleared, which others must wait for.
DEAD_ROWS = replace(CASE, len_q=100, len_k=70)
FORWARD = {
    "barrier before V is overwritten": (drop(r"bar\.sync", 0), "race"),
    "barrier before K is overwritten": (drop(r"bar\.sync", 1), "race"),
    "wait for K": (drop(r"cp\.async\.wait_group", 0), "race"),
    "wait for V": (drop(r"cp\.async\.wait_group", 1), "race"),
    "number of groups to wait for": (
        change_all(r"cp\.async\.wait_group 0", "cp.async.wait_group 1"),
        "race",
    ),
    "commit of Q and K": (drop(r"cp\.async\.commit_group", 0), "race"),
    "commit of V": (drop(r"cp\.async\.commit_group", 1), "race"),
    "barriers of the warp around its stores": (
        change_all(r"bar\.warp\.sync[^;]*;", ""),
        "race",
    ),
    "swizzle": (change_all(r"xor\.b32(\s+%r\d+, %r\d+), 32;", r"xor.b32\1, 0;"), "numbers"),
    "transposition of V": (change_all(r"(ldmatrix\S*)\.trans", r"\1"), "numbers"),
    "number of matrices": (
        change_all(r"(ldmatrix\S*)\.x4(\S*\s+\{%r\d+, %r\d+), %r\d+, %r\d+\}", r"\1.x2\2}"),
        "memory",
    ),
    "type of the products": (change_all(r"\.f32\.bf16\.bf16\.f32", ".f32.f16.f16.f32"), "numbers"),
    "order of a pair": (
        change_all(r"(cvt\.rn\.bf16x2\.f32\s+%r\d+), (%f\d+), (%f\d+)", r"\1, \3, \2"),
        "numbers",
    ),
    "largest score": (change_all(r"max\.f32", "min.f32"), "numbers"),
    "distance of the shuffles": (
        change_all(r"(shfl\.sync\.bfly\.b32.*?, %r\d+), %r\d+,", r"\1, 4,"),
        "numbers",
    ),
}
QUERY_GRADIENT = {
    "barrier": (drop(r"bar\.sync", 0), "race"),
    "wait for the tiles": (drop(r"cp\.async\.wait_group", 0), "race"),
    "barriers of the warp around its stores": (
        change_all(r"bar\.warp\.sync[^;]*;", ""),
        "race",
    ),
}
KEY_GRADIENT = {
    "barrier before a tile is read": (drop(r"bar\.sync", 0), "race"),
    "barrier behind the exchange": (drop(r"bar\.sync", 1), "race"),
    "wait for the tiles": (drop(r"cp\.async\.wait_group", 0), "race"),
}
# What the host could get wrong: fields of the problem.
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "edge of the mask": ({"right": 1}, "numbers"),
    "diagonal": ({"offset": -1}, "numbers"),
    "scale": ({"scale": 0.13}, "numbers"),
    "keys that do not exist": ({"len_k": 151, "offset": 0, "right": 1 << 30}, "memory"),
    "queries that do not exist": ({"len_q": 151, "offset": 0}, "memory"),
    "elements of a row": ({"value_dim": 56}, "numbers"),
}


def run_forward() -> float:
    inputs = CASE.make()
    result = emulate.forward(inputs)
    inputs.assert_forward(result.out, result.lse)
    return 0.0


def run_backward(case: AttentionCase = CASE) -> float:
    inputs = case.make()
    grad_out, grad_lse = inputs.random_output_gradients()
    out, lse = inputs.exact
    given = out.to(CASE.dtype), lse.float()
    result = emulate.backward(inputs, *given, grad_out, grad_lse)
    gradients = (result.query, result.key, result.value, None, None)
    inputs.assert_gradients(gradients, grad_out, grad_lse)
    return 0.0


def plant(monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...], edit: Edit, stem: str) -> None:
    """The kernel named by `parts`, which is in file `stem`, runs with the edit."""
    original = emulate.ROOM.ptx
    text = inside((*parts, "Bfloat16"), edit)(original(stem))
    monkeypatch.setattr(emulate.ROOM, "ptx", lambda name: text if name == stem else original(name))


@pytest.mark.parametrize("name", FORWARD)
def test_bug_in_forward_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, kind = FORWARD[name]
    plant(monkeypatch, ("forward_kernel",), edit, "forward_64")
    assert_found(run_forward, kind)


@pytest.mark.parametrize("name", QUERY_GRADIENT)
def test_bug_in_query_gradient_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, kind = QUERY_GRADIENT[name]
    plant(monkeypatch, ("query_gradient",), edit, "backward_64")
    assert_found(run_backward, kind)


@pytest.mark.parametrize("name", KEY_GRADIENT)
def test_bug_in_key_gradient_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, kind = KEY_GRADIENT[name]
    plant(monkeypatch, ("key_gradient",), edit, "backward_64")
    assert_found(lambda: run_backward(DEAD_ROWS), kind)


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_field_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, kind = FIELDS[name]
    original: Callable[[AttentionInputs, Any], dict[str, Any]] = emulate.problem_fields
    monkeypatch.setattr(emulate, "problem_fields", lambda *a: {**original(*a), **changed})
    assert_found(run_forward, kind)


def test_without_bugs() -> None:
    assert run_forward() == run_backward() == run_backward(DEAD_ROWS) == 0.0
