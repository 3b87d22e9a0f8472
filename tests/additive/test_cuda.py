"""The backend cuda_sm80 of additive_attention without a GPU: its reasons, and what it calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from additive_case import AdditiveCase
from cuda.additive_emulation import call_of

from fused_attention import Band, _ext, additive_attention
from fused_attention.additive import cuda
from fused_attention.additive.problem import AdditiveProblem

PLAIN = AdditiveProblem(torch.bfloat16, "cuda", 2, 1, 19, 27, 1000, 2000, Band())


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if library, driver and a GPU were there."""
    monkeypatch.setattr(_ext, "cuda_unavailable", lambda: ())


@pytest.mark.usefixtures("usable")
def test_runs_three_dtypes_and_any_size():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        problem = PLAIN._replace(dtype=dtype, band=Band.causal(), has_key_lengths=True)
        assert cuda.why_not(problem) == []


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"device_type": "cpu"}, "runs on CUDA tensors, got cpu"),
        ({"dtype": torch.float64}, "computes in fp32, fp16 and bf16, got float64"),
    ],
)
def test_reasons(changed, reason):
    assert cuda.why_not(PLAIN._replace(**changed)) == [reason]


def test_without_the_library_it_says_so():
    unavailable = _ext.cuda_unavailable()
    assert cuda.why_not(PLAIN) == list(unavailable)
    inputs = AdditiveCase("plain").make()
    operands = (inputs.query, inputs.key, inputs.value, inputs.v)
    with pytest.raises(NotImplementedError, match="runs on CUDA tensors, got cpu"):
        additive_attention(*operands, backend="cuda_sm80")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """What the operators of the CUDA library have been called with."""
    calls: dict[str, tuple[Any, ...]] = {}
    names = ("cuda_additive_forward", "cuda_additive_backward")
    operators = {name: lambda *args, name=name: calls.update({name: args}) for name in names}
    library = SimpleNamespace(fused_attention=SimpleNamespace(**operators))
    monkeypatch.setattr(cuda.torch, "ops", library)
    return calls


def test_forward_writes_into_fresh_results(called):
    call = call_of(AdditiveCase("plain").make())
    out, lse = cuda.forward(call)
    assert called["cuda_additive_forward"] == (*call, out, lse)
    assert out.shape == (2, 2, 19, 16) and lse.shape == (2, 2, 19) and lse.dtype == torch.float32


@pytest.mark.parametrize(
    ("needed", "given"),
    [
        ((True, False, False, False), "query v"),
        ((False, False, False, True), "query v"),
        ((False, True, False, False), "key value"),
        ((False, False, True, True), "query key value v"),
    ],
)
def test_gradients_come_in_pairs(called, needed, given):
    call = call_of(AdditiveCase("plain").make())
    results, grads = ("out", "lse"), ("grad_out", None)
    found = cuda.backward(call, grads, results, needed)
    assert called["cuda_additive_backward"] == (*call, *results, *grads, *found)
    names = ("query", "key", "value", "v")
    assert [name for name, x in zip(names, found, strict=True) if x is not None] == given.split()
    for name, x in zip(names, found, strict=True):
        assert x is None or (x.shape, x.dtype) == (
            getattr(call, name).shape,
            getattr(call, name).dtype,
        )
