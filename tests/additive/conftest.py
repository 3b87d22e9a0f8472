"""Where the kernels of additive attention run here: the CPU's once for each instruction set."""

from __future__ import annotations

import pytest

from fused_attention import _ext

# Tiers above AVX-512 run the kernels of that one.
ISAS = [isa for isa in _ext.available_cpu_isas() if isa in ("avx512", "avx2", "portable")]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An instruction set, which the backend "cpu" is forced to use."""
    monkeypatch.setattr(_ext, "cpu_isa", lambda: request.param)
    return request.param
