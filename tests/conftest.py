"""Fixtures of the whole test suite, and Triton's interpreter where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from fused_attention import masks


def interpret_triton() -> None:
    """Triton's kernels run in its interpreter from now on.

    Triton reads the variable when it is imported. Afterwards it is taken away again: programs that
    tests start would inherit it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from triton_interpreted import interpreter

        interpreter.install()


if not torch.cuda.is_available():
    interpret_triton()


@pytest.fixture(scope="session", params=["python", "native"])
def band_algebra(request: pytest.FixtureRequest) -> ModuleType:
    """A namespace with Band(left, right, offset) and the band_* functions of masks.py.

    "native" is csrc's band.h behind pybind11, where a tile kind is a plain int.
    """
    if request.param == "python":
        return masks
    from native.build import native_module  # needs a compiler, which other tests do not

    return native_module()


@pytest.fixture
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every tensor that the package allocates without initialising starts as NaN.

    Plain calls go the long way: their results are allocated in C++ (see test_plain_calls.py).
    """

    def poisoned(allocate):
        def wrapper(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return wrapper

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr("fused_attention.functional.run_plain", lambda *args: None)
    yield
