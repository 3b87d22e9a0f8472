"""What the tests of the kernels share: which backends and tiers run here, poisoned memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fused_attention import _ext, backends

FUSED = tuple(info.name for info in backends() if info.available and info.name != "reference")


def _instances() -> list[str]:
    """Each fused backend that runs here; the CPU once per instruction set."""
    names: list[str] = []
    for name in FUSED:
        names += [f"cpu-{isa}" for isa in _ext.available_cpu_isas()] if name == "cpu" else [name]
    return names


@pytest.fixture(params=_instances())
def fused_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend's name; for the CPU with one instruction set forced."""
    name, _, isa = request.param.partition("-")
    if isa:
        monkeypatch.setattr(_ext, "cpu_isa", lambda: isa)
    return name


@pytest.fixture
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every tensor that the package allocates without initialising starts as NaN."""

    def poisoned(allocate):
        def wrapper(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return wrapper

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    yield
