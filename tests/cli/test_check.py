"""fused-attention check: passes what is right, fails what is wrong, says what cannot run."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fused_attention.cli import check
from fused_attention.cli.check_cases import (
    CHECK_CASES,
    CheckInputs,
    make_inputs,
    run_backend,
    run_reference,
)

FEW = tuple(case for case in CHECK_CASES if case.name in ("causal", "everything at once"))


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "CHECK_CASES", FEW)


def test_everything_passes_here(command: Any) -> None:
    outcome = command("check")
    assert outcome.code == 0, outcome.out
    assert "checks passed" in outcome.out


def test_every_feature_passes_in_one_dtype(command: Any) -> None:
    outcome = command("check", "--backend", "cpu", "--dtype", "fp32", "--json")
    told = json.loads(outcome.out)
    assert outcome.code == 0, [r for r in told["results"] if r["status"] != check.PASS]
    assert told["passed"]
    assert [r["case"] for r in told["results"]] == [case.name for case in CHECK_CASES]
    assert all(0.0 <= r["ratio"] <= 1.0 for r in told["results"])


@pytest.mark.usefixtures("few_cases")
@pytest.mark.parametrize("tensor", ["out", "lse", "gradient of key", "gradient of bias"])
def test_wrong_tensor_fails(command: Any, monkeypatch: pytest.MonkeyPatch, tensor: str) -> None:
    def slightly_wrong(inputs: CheckInputs, backend: str, device: str) -> dict[str, torch.Tensor]:
        results = run_backend(inputs, backend, device)
        if backend == "cpu" and tensor in results:
            results[tensor] = results[tensor] * 1.01
        return results

    monkeypatch.setattr(check, "run_backend", slightly_wrong)
    outcome = command("check", "--dtype", "fp32")
    assert outcome.code == 1
    assert f"FAIL everything at once, cpu, fp32: {tensor} is" in outcome.out
    assert "checks FAILED" in outcome.out
    assert "reference, fp32: " not in outcome.out


@pytest.mark.usefixtures("few_cases")
def test_nan_fails_and_json_stays_json(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_a_number(inputs: CheckInputs, backend: str, device: str) -> dict[str, torch.Tensor]:
        return run_backend(inputs, backend, device) | {"lse": torch.tensor(torch.nan)}

    monkeypatch.setattr(check, "run_backend", not_a_number)
    outcome = command("check", "--dtype", "fp32", "--backend", "cpu")
    assert outcome.code == 1
    assert "lse has NaN or infinities that the reference has not" in outcome.out
    text = command("check", "--dtype", "fp32", "--backend", "cpu", "--json").out
    assert {r["ratio"] for r in json.loads(text, parse_constant=pytest.fail)["results"]} == {None}


@pytest.mark.usefixtures("few_cases")
def test_crash_fails_and_refusal_does_not(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(inputs: CheckInputs, backend: str, device: str) -> dict[str, torch.Tensor]:
        if backend == "reference":
            raise NotImplementedError("not today")
        raise RuntimeError("boom")

    monkeypatch.setattr(check, "run_backend", raises)
    told = json.loads(command("check", "--dtype", "fp32", "--json").out)
    by_backend = {r["backend"]: (r["status"], r["reason"]) for r in told["results"]}
    assert by_backend == {
        "cpu": (check.FAIL, "RuntimeError: boom"),
        "reference": (check.CANNOT, "not today"),
    }
    outcome = command("check", "--dtype", "fp32", "--backend", "reference")
    assert outcome.code == 0
    assert "—" in outcome.out


def test_a_backend_for_gpus_is_checked_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor goes there, and what it gives comes back: here to a GPU that is none."""
    on_gpu = SimpleNamespace(why_not=lambda problem: [] if problem.device_type == "cuda" else ["-"])
    everywhere = SimpleNamespace(why_not=lambda problem: [])
    monkeypatch.setattr(check, "get", {"gpu": on_gpu, "all": everywhere}.__getitem__)
    assert (check.device_of("gpu"), check.device_of("all")) == ("cuda", "cpu")
    for case in CHECK_CASES:
        moved = make_inputs(case, torch.float32, seed=0).on("meta")
        tensors = [*moved.leaves.values(), moved.grad_out, moved.grad_lse]
        tensors += [x for x in moved.constants.values() if isinstance(x, torch.Tensor)]
        assert {x.device.type for x in tensors} == {"meta"}
        assert all(leaf.requires_grad and leaf.is_leaf for leaf in moved.leaves.values())
        assert moved.leaves["query"].is_contiguous() != ("strided" in case.features)


def test_unavailable_backend_cannot_be_asked_for(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fused_attention import _ext

    monkeypatch.setattr(_ext, "cpu_unavailable", lambda: "the library is on holiday")
    outcome = command("check", "--backend", "cpu")
    assert outcome.code == 2
    assert "cpu cannot run here: the library is on holiday" in outcome.err
    assert check.available_backends() == ["reference"]


@pytest.mark.parametrize("case", CHECK_CASES, ids=lambda case: case.name)
def test_case_has_the_features_it_is_named_after(case: Any) -> None:
    inputs = make_inputs(case, torch.float32, seed=0)
    assert ("bias" in inputs.leaves) == ("bias" in case.features)
    assert ("sinks" in inputs.leaves) == ("sinks" in case.features)
    assert ("kv_lengths" in inputs.constants) == ("lengths" in case.features)
    assert (inputs.dropout_p > 0) == ("dropout" in case.features)
    assert inputs.leaves["query"].is_contiguous() != ("strided" in case.features)
    again = make_inputs(case, torch.float32, seed=0)
    assert all(torch.equal(again.leaves[name], x) for name, x in inputs.leaves.items())
    results = run_reference(inputs, torch.float64)
    assert {"out", "lse", "gradient of query"} <= results.keys()
    assert {x.dtype for x in results.values()} == {torch.float64}
