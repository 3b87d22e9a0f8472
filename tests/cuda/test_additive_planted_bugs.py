"""Synchronisation that is left out of the kernels of csrc/cuda/additive does not go unnoticed.

That keeps the other tests honest: each barrier is there because something breaks without it, and
the emulator sees what breaks.
"""

from __future__ import annotations

import re

import pytest
import torch
from additive_case import AdditiveCase, AdditiveInputs
from cuda.additive_emulation import ROOM, backward, call_of, entry_of, forward
from cuda.build import Room
from cuda.emulate import Emulation
from ptxsim.errors import SimulationError
from torch import Tensor

CASE = AdditiveCase(
    "several_steps",
    batch=1,
    heads=1,
    len_q=66,
    len_k=70,
    dim=98,
    value_dim=34,
    dtype=torch.float16,
    column_scales=(1e-3, 1.0, 20.0),  # small, ordinary, large and again ordinary elements
)
HOW = Emulation(seed=5)
BARRIER = re.compile(r"bar\.sync\s+0\s*;")
# "Is any element larger than that?" is asked twice, and each time is a barrier.
ANY = re.compile(r"bar\.red\.or\.pred\s+(%p\d+),[^;]*;")
COUNTS = {
    "forward": (5, 1),
    "query_gradient": (8, 2),
    "key_gradient": (11, 2),
    "v_gradient": (1, 0),
}
PLANTED = [
    *((kernel, "barrier", n) for kernel, (count, _) in COUNTS.items() for n in range(count)),
    *((kernel, "range", n) for kernel, (_, count) in COUNTS.items() for n in range(count)),
]


@pytest.fixture(scope="module")
def sound() -> tuple[AdditiveInputs, tuple[Tensor, ...]]:
    """A problem, and what the kernels as they are make of it."""
    inputs = CASE.make()
    results = forward(call_of(inputs))[:2]
    gradients = backward(call_of(inputs), *results, *inputs.upstream)[:4]
    return inputs, (*results, *gradients)


def compute(kernel: str, inputs: AdditiveInputs, sound: tuple[Tensor, ...]) -> None:
    """What the kernel gives, beside the sound results of the others, is within budget."""
    call, found = call_of(inputs), list(sound)
    if kernel == "forward":
        found[:2] = forward(call, HOW)[:2]
    else:
        wanted = "key" if kernel == "key_gradient" else "query"
        gradients = backward(call, *found[:2], *inputs.upstream, HOW, (wanted,))[:4]
        pairs = zip(gradients, found[2:], strict=True)
        found[2:] = [x if mine is None else mine for mine, x in pairs]
    inputs.assert_results(*found[:5], found[5].view(-1))


def body(kernel: str) -> tuple[str, str, int, int]:
    """The file that has a kernel, its text, and where in it the kernel begins and ends."""
    file, name = entry_of(kernel, CASE.dtype)
    ptx = ROOM.ptx(file)
    start = ptx.index(f".entry {name}")
    end = ptx.find(".visible .entry", start)
    return file, ptx, start, len(ptx) if end < 0 else end


def planted(kernel: str, what: str, n: int) -> tuple[str, str]:
    """The file of a kernel, and its text without the n-th of these steps."""
    file, ptx, start, end = body(kernel)
    if what == "barrier":
        step = list(BARRIER.finditer(ptx, start, end))[n]
        return file, ptx[: step.start()] + ptx[step.end() :]
    # Both answers as for ordinary elements, and no thread waits for another.
    steps = list(ANY.finditer(ptx, start, end))[2 * n : 2 * n + 2]
    for step, answer in zip(reversed(steps), (0, 1), strict=True):
        told = f"setp.ne.u32 {step[1]}, {answer}, 0;"
        ptx = ptx[: step.start()] + told + ptx[step.end() :]
    return file, ptx


@pytest.mark.parametrize("kernel", COUNTS)
def test_all_steps_are_looked_at(kernel):
    _, ptx, start, end = body(kernel)
    barriers, ranges = COUNTS[kernel]
    assert len(BARRIER.findall(ptx, start, end)) == barriers
    assert len(ANY.findall(ptx, start, end)) == 2 * ranges


@pytest.mark.parametrize(("kernel", "what", "n"), PLANTED)
def test_missing_step_is_noticed(kernel, what, n, sound, monkeypatch):
    file, broken = planted(kernel, what, n)
    own = Room.ptx
    monkeypatch.setattr(Room, "ptx", lambda room, f: broken if f == file else own(room, f))
    with pytest.raises((SimulationError, AssertionError)):
        compute(kernel, *sound)


@pytest.mark.parametrize("kernel", COUNTS)
def test_nothing_is_noticed_where_nothing_is_missing(kernel, sound):
    compute(kernel, *sound)
