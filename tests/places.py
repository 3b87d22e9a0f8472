"""Where kernels run here: every backend, on every kind of device that it serves.

    @pytest.mark.parametrize(("place", "case"), matrix(CASES, DTYPES), indirect=["place"])

What a backend can do is what its own why_not says: other cases are not collected. The backend
"cpu" has to do everything. The fixture `place` stands in backends/conftest.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from attention_case import AttentionCase

from fused_attention import _ext, explain
from fused_attention.backends import ORDER, Backend, get
from fused_attention.problem import Problem
from fused_attention.support import devices_of, sample_problem

# What a drawn problem loses, in this order, where a backend refuses it.
_SIMPLER: tuple[dict[str, Any], ...] = (
    {"dtype": torch.bfloat16},
    {"bias": None},
    {"value_dim": None},
    {"dropout_p": 0.0},
    {"alibi": None},
    {"sinks": False},
    {"softcap": 0.0},
)


class Place(NamedTuple):
    """A backend on a kind of device; the CPU's once for each instruction set."""

    backend: str
    device: str
    isa: str = ""

    def __str__(self) -> str:
        return f"{self.backend}-{self.isa}" if self.isa else self.backend

    @property
    def marks(self) -> tuple[pytest.MarkDecorator, ...]:
        return (pytest.mark.gpu,) if self.device == "cuda" else ()

    def why_not(self, case: AttentionCase) -> list[str]:
        """Why this backend cannot run the case, forward and backward; empty if it can."""
        return get(self.backend).why_not(problem_of(case, self.device))

    def fitting(self, case: AttentionCase) -> AttentionCase:
        """The case without the features that this backend refuses."""
        for change in _SIMPLER:
            reasons = self.why_not(case)
            if not reasons:
                return case
            simpler = replace(case, **change)
            if len(self.why_not(simpler)) < len(reasons):
                case = simpler
        return case


def problem_of(case: AttentionCase, device: str) -> Problem:
    """What a backend is asked about the case, without tensors on the device."""
    inputs = case.make(0)
    inputs.require_gradients()
    problem = explain(inputs.query, inputs.key, inputs.value, **inputs.options).problem
    return problem._replace(device_type=device)


def places(backends: Iterable[Backend] = ORDER) -> tuple[Place, ...]:
    """Every fused backend that runs here on every kind of device where it takes plain problems."""
    found: list[Place] = []
    for backend in backends:
        for device in () if backend.NAME == "reference" else devices_of(backend):
            isas = _ext.available_cpu_isas() if backend.NAME == "cpu" else ("",)
            found += [Place(backend.NAME, device, isa) for isa in isas]
    return tuple(found)


# Backends for tests with CPU tensors of every dtype, fp64 too; the reference among them.
CPU_BACKENDS = [b.NAME for b in ORDER if not b.why_not(sample_problem("cpu", "fp64"))]
PLACES = places()
GPU_PLACES = tuple(place for place in PLACES if place.device == "cuda")


def matrix(
    cases: Iterable[AttentionCase],
    dtypes: Iterable[torch.dtype] | None = None,
    where: Iterable[Place] = PLACES,
) -> list[Any]:
    """Parameters (place, case) of a test, for each place, case and dtype that go together.

    Args:
        dtypes: None leaves each case the dtype that it has; a place that does not know it uses
            bf16.
    """
    dtypes = None if dtypes is None else tuple(dtypes)
    params = []
    for place in where:
        for case in cases:
            for wanted in (
                (place.fitting(case),) if dtypes is None else map(case.with_dtype, dtypes)
            ):
                if place.backend == "cpu" or not place.why_not(wanted):
                    name = f"{place}-{wanted}-{str(wanted.dtype).removeprefix('torch.')}"
                    params.append(pytest.param(place, wanted, id=name, marks=place.marks))
    return params
