"""What the tests of the kernels share: which backends and tiers run here."""

from __future__ import annotations

import pytest
import torch
from places import GPU_PLACES, PLACES, Place

from fused_attention import _ext

# Tests that need a GPU whatever they do. Elsewhere they are not collected: nothing to skip.
collect_ignore_glob = [] if torch.cuda.is_available() else ["test_gpu_*.py"]


@pytest.fixture(params=[pytest.param(p, id=str(p), marks=p.marks) for p in PLACES])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A backend and a device; for the CPU with one instruction set forced."""
    if request.param.isa:
        monkeypatch.setattr(_ext, "cpu_isa", lambda: request.param.isa)
    return request.param


@pytest.fixture(params=[pytest.param(p, id=str(p)) for p in PLACES if p.device == "cpu"])
def fused_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend for CPU tensors; for the CPU with one instruction set forced."""
    if request.param.isa:
        monkeypatch.setattr(_ext, "cpu_isa", lambda: request.param.isa)
    return request.param.backend


@pytest.fixture(params=[pytest.param(p.backend, marks=p.marks) for p in GPU_PLACES])
def gpu_backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend for CUDA tensors."""
    return request.param
