"""Which tests of the kernels are collected: nothing may be missing without anybody noticing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from attention_case import AttentionCase
from hypothesis import given, settings
from places import GPU_PLACES, PLACES, Place, matrix, places, problem_of
from shapes import CASES, DTYPES, attention_cases

from fused_attention import _ext, backends
from fused_attention.backends import cpu


def narrow_why_not(problem):
    """What a backend for half precision on GPUs, without bias and of one head dim, says."""
    reasons = [] if problem.device_type == "cuda" else ["runs on CUDA tensors"]
    reasons += [] if problem.dtype in (torch.float16, torch.bfloat16) else ["dtype"]
    reasons += [] if problem.bias_shape is None else ["bias"]
    return reasons + ([] if problem.head_dim == problem.value_dim else ["value dim"])


NARROW = SimpleNamespace(NAME="narrow", why_not=narrow_why_not)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr("places.get", {"narrow": NARROW, "cpu": cpu}.__getitem__)
    (place,) = places([NARROW])
    return place


def ids(params) -> list[str]:
    return [param.id for param in params]


def test_a_gpu_is_never_left_out():
    """On a machine with a GPU the tests for it exist; elsewhere none of them is collected."""
    told = f"a GPU is {'there' if torch.cuda.is_available() else 'missing'}, but:\n{backends()}"
    assert bool(GPU_PLACES) == torch.cuda.is_available(), told


def test_the_cpu_has_every_instruction_set_and_every_case():
    on_cpu = [place for place in PLACES if place.backend == "cpu"]
    assert [place.isa for place in on_cpu] == list(_ext.available_cpu_isas())
    assert [info.available for info in backends() if info.name == "cpu"] == [bool(on_cpu)]
    assert len(matrix(CASES, DTYPES, on_cpu)) == len(on_cpu) * len(CASES) * len(DTYPES)


def test_triton_runs_somewhere_and_has_every_case_but_fp64():
    """On a GPU, and in its interpreter where there is none."""
    (place,) = [place for place in PLACES if place.backend == "triton"]
    assert place.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert len(matrix(CASES, DTYPES, [place])) == len(CASES) * (len(DTYPES) - 1)


def test_a_backend_stands_where_it_takes_plain_problems(narrow):
    assert narrow == Place("narrow", "cuda")
    assert [mark.name for mark in narrow.marks] == ["gpu"]
    assert places([SimpleNamespace(NAME="none", why_not=lambda problem: ["no"])]) == ()
    both = SimpleNamespace(NAME="both", why_not=lambda problem: [])
    assert places([both]) == (Place("both", "cpu"), Place("both", "cuda"))


def test_a_gpu_gets_what_its_backend_does_not_refuse(narrow):
    cases = (
        AttentionCase("plain"),
        AttentionCase("bias", bias="1hqk"),
        AttentionCase("wide", value_dim=24),
        AttentionCase("packed", seq_lens_q=(5, 3)),
    )
    wanted = [f"narrow-{c}-{d}" for c in ("plain", "packed") for d in ("bfloat16", "float16")]
    assert ids(matrix(cases, DTYPES, [narrow])) == wanted
    assert ids(matrix(cases, None, [narrow])) == [f"narrow-{case}-bfloat16" for case in cases]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=attention_cases())
def test_drawn_problems_lose_only_what_a_backend_refuses(case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("places.get", lambda name: NARROW)
        fitted = Place("narrow", "cuda").fitting(case)
        assert not Place("narrow", "cuda").why_not(fitted)
    assert (fitted.softcap, fitted.alibi, fitted.sinks) == (case.softcap, case.alibi, case.sinks)
    if case.dtype in (torch.float16, torch.bfloat16):
        assert fitted.dtype == case.dtype


def test_a_case_is_described_as_its_tensors_are():
    case = AttentionCase("x", batch=3, heads_q=4, heads_kv=2, head_dim=24, bias="1hqk", sinks=True)
    problem = problem_of(case, "cuda")
    assert problem.device_type == "cuda" and problem.needs_grad and problem.bias_needs_grad
    assert (problem.batch, problem.heads_q, problem.heads_kv, problem.head_dim) == (3, 4, 2, 24)
    assert problem.has_sinks and problem.bias_shape == (1, 4, 35, 35)
