"""The choice of a backend, and what is said about it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from places import CPU_BACKENDS
from torch import Tensor

from fused_attention import attention, attention_varlen, dispatch, explain, support
from fused_attention import backends as list_backends
from fused_attention.backends import ORDER
from fused_attention.problem import Problem
from fused_attention.support import (
    DECODE_FEATURES,
    DTYPES,
    FEATURES,
    sample_problem,
    support_matrix,
)
from fused_attention.text import table


class Stub:
    """A backend that gives these reasons for everything, or only for one dtype."""

    def __init__(self, name: str, reasons: list[str], dtype: torch.dtype | None = None) -> None:
        self.NAME, self.reasons, self.dtype = name, reasons, dtype
        self.DEVICE_TYPES: tuple[str, ...] = ()

    def why_not(self, problem: Problem) -> list[str]:
        return self.reasons if self.dtype in (None, problem.dtype) else []

    decode_why_not = why_not


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three backends: one without a library, one that cannot fp32, one that can."""
    order = (
        Stub("missing", ["the library is not built", "no such GPU"]),
        Stub("picky", ["cannot float32"], torch.float32),
        Stub("willing", []),
    )
    for module in (dispatch, support):
        monkeypatch.setattr(module, "ORDER", order)


FP32, FP16 = sample_problem("cpu", "fp32"), sample_problem("cpu", "fp16")


@pytest.mark.usefixtures("stubs")
def test_the_first_that_can_is_chosen() -> None:
    assert dispatch.select(FP32).NAME == "willing"
    assert dispatch.select(FP16).NAME == "picky"
    assert dispatch.select(FP16, "willing").NAME == "willing"


@pytest.mark.usefixtures("stubs")
def test_a_forced_backend_gives_its_reasons() -> None:
    with pytest.raises(NotImplementedError) as caught:
        dispatch.select(FP32, "missing")
    message = str(caught.value)
    first = "backend 'missing' cannot run this: the library is not built; no such GPU\n"
    assert message == first + str(dispatch.explain(FP32))


def test_none_that_can_gives_all_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "ORDER", (Stub("a", ["too slow"]), Stub("b", ["too old"])))
    with pytest.raises(NotImplementedError) as caught:
        dispatch.select(FP32)
    message = str(caught.value)
    assert all(part in message for part in ("no backend", "too slow", "too old", str(FP32)))


def test_unknown_backend_is_a_value_error() -> None:
    for ask in (dispatch.select, dispatch.explain):
        with pytest.raises(ValueError, match="^backend: must be one of .*'reference'.* got 'gpu'"):
            ask(FP32, "gpu")


@pytest.mark.usefixtures("stubs")
def test_explanation_prints_every_reason() -> None:
    explanation = dispatch.explain(FP32)
    assert explanation.chosen == "willing"
    assert str(explanation).splitlines() == [
        f"problem  {FP32}",
        "chosen   willing",
        "missing  the library is not built",
        "         no such GPU",
        "picky    cannot float32",
        "willing  can run it",
    ]
    loaded = json.loads(json.dumps(explanation.as_dict()))
    assert loaded["chosen"] == "willing"
    assert loaded["reasons"]["missing"] == ["the library is not built", "no such GPU"]
    assert loaded["problem"]["dtype"] == "float32"


@pytest.mark.usefixtures("stubs")
def test_explanation_of_a_forced_backend() -> None:
    assert dispatch.explain(FP16, "picky").chosen == "picky"
    refused = dispatch.explain(FP32, "picky")
    assert refused.chosen is None and "chosen   none" in str(refused)


@pytest.mark.usefixtures("stubs")
def test_list_of_backends_prints_as_a_table() -> None:
    found = support.backends()
    assert [info.available for info in found] == [False, True, True]
    assert str(found).splitlines() == [
        "backend  available  reason",
        "-------  ---------  -------------------------------------",
        "missing  no         the library is not built; no such GPU",
        "picky    yes",
        "willing  yes",
    ]
    assert json.loads(json.dumps(found.as_dicts()))[1] == {
        "name": "picky",
        "available": True,
        "reason": "",
    }


@pytest.mark.usefixtures("stubs")
def test_support_matrix_prints_as_a_table() -> None:
    matrix = support_matrix(("cpu",))
    lines = str(matrix).splitlines()
    assert lines[0].split("  ")[0] == "feature"
    assert "missing on cpu" not in lines[0]
    features = [*FEATURES, *DECODE_FEATURES]
    assert len(lines) == 2 + len(features)
    dropout = next(line for line in lines if line.startswith("dropout"))
    assert dropout.split() == ["dropout", "bf16", "fp16", "fp64", "bf16", "fp16", "fp32", "fp64"]
    assert len(matrix) == len(features) * 3 * len(DTYPES)
    refused = [entry for entry in matrix.as_dicts() if not entry["supported"]]
    assert {entry["reason"] for entry in refused} == {
        "the library is not built; no such GPU",
        "cannot float32",
    }
    json.dumps(matrix.as_dicts())


def test_table_aligns_columns() -> None:
    assert table([("a", "bcd"), ("efgh", "")]) == "a     bcd\n----  ---\nefgh"


def test_every_backend_names_itself_and_knows_nothing_of_others() -> None:
    names = [backend.NAME for backend in ORDER]
    assert len(set(names)) == len(names) and names[-1] == "reference"
    for info in list_backends():
        assert info.available == (not info.reason)


def arguments_of(problem: Problem) -> dict[str, Any]:
    """Tensors of a sample problem."""

    def ints(*numbers: int) -> Tensor:
        return torch.tensor(numbers)

    def operand(heads: int, length: int, dim: int) -> Tensor:
        size = (problem.batch, heads, length, dim)
        tensor = torch.randn(size, dtype=problem.dtype)
        tensor = tensor.transpose(1, 2).flatten(0, 1) if problem.packed else tensor
        return tensor.requires_grad_(problem.needs_grad and not problem.bias_needs_grad)

    arguments: dict[str, Any] = {
        "query": operand(problem.heads_q, problem.len_q, problem.head_dim),
        "key": operand(problem.heads_kv, problem.len_k, problem.head_dim),
        "value": operand(problem.heads_kv, problem.len_k, problem.value_dim),
        "band": problem.band,
        "scale": problem.scale,
        "softcap": problem.softcap,
        "dropout_p": problem.dropout_p,
        "deterministic": problem.deterministic,
    }
    if problem.packed:
        arguments["cu_seqlens_q"] = ints(0, problem.len_q, 2 * problem.len_q)
        arguments["max_seqlen_q"] = problem.len_q
    if problem.bias_shape is not None:
        bias = torch.randn(problem.bias_shape, dtype=problem.bias_dtype)
        arguments["bias"] = bias.requires_grad_(problem.bias_needs_grad)
    if problem.has_alibi:
        arguments["alibi_slopes"] = torch.rand(problem.heads_q)
    if problem.has_sinks:
        arguments["sinks"] = torch.randn(problem.heads_q)
    if problem.has_kv_lengths:
        arguments["kv_lengths"] = ints(problem.len_k, 3)
    if problem.has_band_offsets:
        arguments["band_offsets"] = ints(0, 1)
    return arguments


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("feature", FEATURES)
def test_what_the_matrix_promises_runs(feature: str, backend: str) -> None:
    """The sample problem is what these arguments make, and the backend does what it said."""
    problem = sample_problem("cpu", "fp32", feature)
    arguments = arguments_of(problem)
    assert explain(**arguments).problem == problem
    if explain(**arguments, backend=backend).chosen is None:
        pytest.skip("not promised")
    attend = attention_varlen if problem.packed else attention
    out = attend(**arguments, backend=backend)
    assert out.isfinite().all()
    if problem.needs_grad:
        out.sum().backward()
    assert out.requires_grad == problem.needs_grad
