"""Forward mode in one pass: within budget for every feature, and what runs when it is asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_case import AttentionCase
from shapes import CASES
from torch.func import jvp
from triton_interpreted.kernel_calls import assert_tangents, directions, tangents_of

from fused_attention import Band, attention
from fused_attention.backends import reference
from fused_attention.backends import triton as backend
from fused_attention.reference import (
    AttentionTangents,
    attention_reference,
)

BY_NAME = {case.name: case for case in CASES}
NAMES = (
    *("odd_lengths", "one_query", "no_queries", "no_keys_but_sinks", "dim_17", "dim_256"),
    *("narrow_value", "latent", "causal_more_keys", "causal_more_queries", "window", "offsets"),
    *("kv_lengths", "bias_bhqk", "bias_1h1k", "bias_hides_all", "alibi_both_sides", "softcap"),
    *("sinks", "sinks_dead_rows", "dropout_causal", "peaked_causal", "everything"),
    *("layout_sliced", "layout_shared", "packed_nothing", "packed_lengths_differ"),
    "packed_everything",
)
LOW = ("window", "sinks", "everything", "packed_everything", "peaked")
MATRIX = [
    *(BY_NAME[name] for name in NAMES),
    *(BY_NAME[name].with_dtype(d) for name in LOW for d in (torch.bfloat16, torch.float16)),
]


def assert_right(case: AttentionCase, standing: tuple[str, ...] = ()) -> None:
    """The kernel's results against fp64; the tensors named `standing` have no tangent."""
    inputs = case.make()
    tangents = [
        None if name in standing else tangent
        for name, tangent in zip(AttentionTangents._fields, directions(inputs), strict=True)
    ]
    assert_tangents(inputs, tangents, tangents_of(inputs, tangents))


@pytest.mark.parametrize("case", MATRIX, ids=lambda case: f"{case}-{case.dtype}")
def test_within_budget(case: AttentionCase) -> None:
    assert_right(case)


@pytest.mark.parametrize("moving", AttentionTangents._fields)
def test_one_tensor_moves(moving: str) -> None:
    standing = tuple(name for name in AttentionTangents._fields if name != moving)
    assert_right(AttentionCase("", len_q=40, bias="1hqk", sinks=True), standing)


def test_what_lies_beyond_a_length_may_move_anywhere() -> None:
    """NaN in the tangents of keys that do not exist, and of queries that see none."""
    inputs = AttentionCase("", len_q=20, len_k=70, kv_lengths=(0, 33)).make()
    tangents = directions(inputs)
    assert tangents[0] is not None and tangents[1] is not None and tangents[1].isnan().any()
    tangents[0][0] = math.nan
    out, lse, out_tangent, lse_tangent = tangents_of(inputs, tangents)
    assert (out[0] == 0).all() and (lse[0] == -math.inf).all()
    assert (out_tangent[0] == 0).all() and (lse_tangent[0] == 0).all()
    assert out_tangent[1].isfinite().all() and lse_tangent[1].isfinite().all()


def test_torch_func_runs_the_kernel_once_and_no_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = AttentionCase("", len_q=20, band=Band.causal()).make()
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: calls.append(name) or original(*args))

    for module, name in ((backend, "jvp"), (backend, "forward"), (reference, "differentiable_jvp")):
        counted(module, name)
    operands = (inputs.query, inputs.key, inputs.value)
    along = tuple(t for t in directions(inputs) if t is not None)
    found = jvp(lambda *x: attention(*x, causal=True, backend="triton"), operands, along)
    assert calls == ["jvp"]
    exact = jvp(lambda *x: attention_reference(*x, band=Band.causal())[0], operands, along)
    torch.testing.assert_close(found, exact)
