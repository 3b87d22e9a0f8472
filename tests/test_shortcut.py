"""Whoever watches operators sees ours, though a plain call goes past the dispatcher."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fused_attention import attention, attention_with_kv_cache, autograd
from fused_attention.shortcut import watched

NAMES = ("fused_attention.forward.default", "fused_attention.backward.default")


class DispatchRecorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class FunctionRecorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def test_a_plain_call_is_not_watched() -> None:
    x = torch.randn(1, 1, 2, 4)
    assert not watched((x, torch.nn.Parameter(x), None, 1, 2.0, True, "cpu"))


def test_every_kind_of_watching() -> None:
    x = torch.randn(1, 1, 2, 4)
    assert watched((x.as_subclass(Subclass),))
    assert watched((x, x.as_subclass(Subclass)))
    assert watched((torch.empty(1, device="meta"),))
    with DispatchRecorder():
        assert watched((x,))
    with torch.device("cpu"):
        assert watched((x,))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert watched((x,))
    answers = []

    def function(y: Tensor) -> Tensor:
        answers.append(watched((y,)))
        return y * 2

    torch.vmap(function)(x)
    torch.jit.trace(function, x, check_trace=False)
    assert answers == [True, True]
    assert not watched((x,))


@pytest.mark.parametrize("recorder", [DispatchRecorder, FunctionRecorder])
def test_modes_see_forward_and_backward(recorder: Any) -> None:
    """And the results are those of a call that nobody watches, to the last bit."""
    results = []
    for mode in (recorder(), nullcontext()):
        torch.manual_seed(0)
        query = torch.randn(1, 2, 9, 8, requires_grad=True)
        with mode:
            out = attention(query, query.detach(), query.detach(), causal=True)
            (grad,) = torch.autograd.grad(out.sum(), query)
            with torch.no_grad():
                results.append((attention(query, query, query), out, grad))
        if isinstance(mode, TorchDispatchMode):
            assert [mode.seen.count(name) for name in NAMES] == [2, 1]
        elif isinstance(mode, TorchFunctionMode):
            assert NAMES[0] in mode.seen
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_mode_sees_a_step_of_decoding() -> None:
    cache = torch.randn(1, 2, 16, 8)
    with DispatchRecorder() as mode:
        attention_with_kv_cache(torch.randn(1, 2, 1, 8), cache, cache, cache_lengths=9)
    assert "fused_attention.decode.default" in mode.seen


def test_plain_calls_go_past_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of a plain forward and backward do not reach the operators at all."""

    def never(*args: Any) -> Any:
        raise AssertionError("the operator was called")

    monkeypatch.setitem(autograd._BODIES, never, autograd._forward)
    monkeypatch.setattr(autograd, "forward_op", never)
    x = torch.randn(1, 1, 5, 4, requires_grad=True)
    attention(x, x, x).sum().backward()
    with torch.no_grad():
        attention(x, x, x)
