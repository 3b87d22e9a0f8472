"""Synchronisation that is left out of the kernels of csrc/cuda/sm80 does not go unnoticed.

That keeps the other tests honest: each barrier and each wait is there because something breaks
without it, and the emulator sees what breaks.
"""

from __future__ import annotations

import re

import pytest
import torch
from attention_case import AttentionCase
from cuda.build import Room
from cuda.emulate import ELEMENTS, ROOM, Emulation, backward, forward
from ptxsim.errors import SimulationError

from fused_attention.masks import Band

# Some queries see nothing, so that the way that keeps their dO out is taken, too.
CASE = AttentionCase(
    "several_steps",
    batch=1,
    heads_q=2,
    heads_kv=1,
    len_q=140,
    len_k=150,
    head_dim=64,
    band=Band.causal(offset=-5),
    dtype=torch.float16,
)
BARRIER, WAIT = r"bar\.sync\s+0", r"cp\.async\.wait_group\s+0"
STEPS = {  # kernel -> the file that has it, and what it waits for how often
    "forward": ("forward_64", {BARRIER: 2, WAIT: 2}),
    "key_gradient": ("backward_64", {BARRIER: 2, WAIT: 1}),
    "query_gradient": ("backward_64", {BARRIER: 1, WAIT: 1}),
}
PLANTED = [
    pytest.param(
        kernel, stem, step, n, id=f"{kernel}-{'barrier' if step == BARRIER else 'wait'}{n}"
    )
    for kernel, (stem, steps) in STEPS.items()
    for step, count in steps.items()
    for n in range(count)
]


def body(ptx: str, name: str) -> tuple[int, int]:
    """Where the text of one kernel begins and ends."""
    start = ptx.index(f".entry {name}")
    end = ptx.find(".visible .entry", start)
    return start, len(ptx) if end < 0 else end


def steps_of(kernel: str, stem: str, step: str) -> tuple[str, list[re.Match[str]]]:
    ptx = ROOM.ptx(stem)
    name = ROOM.entry(stem, f"{kernel}_kernel", ELEMENTS[CASE.dtype])
    return ptx, list(re.compile(step + r"\s*;").finditer(ptx, *body(ptx, name)))


def computed(case: AttentionCase) -> None:
    """Forward and backward, within budget."""
    inputs = case.make()
    how = Emulation(seed=5)
    out, lse, _ = forward(inputs, how)
    inputs.assert_forward(out, lse)
    grad_out, grad_lse = inputs.random_output_gradients()
    dead = (lse == -torch.inf)[..., None]
    assert dead.any()
    found = backward(inputs, out, lse, grad_out.masked_fill(dead, torch.nan), grad_lse, how)
    inputs.assert_gradients((*found[:3], None, None), grad_out, grad_lse)


@pytest.mark.parametrize("kernel", STEPS)
def test_all_steps_are_looked_at(kernel):
    stem, steps = STEPS[kernel]
    assert {step: len(steps_of(kernel, stem, step)[1]) for step in steps} == steps


@pytest.mark.parametrize(("kernel", "stem", "step", "n"), PLANTED)
def test_missing_step_is_noticed(kernel, stem, step, n, monkeypatch):
    ptx, found = steps_of(kernel, stem, step)
    broken = ptx[: found[n].start()] + ptx[found[n].end() :]
    own = Room.ptx
    monkeypatch.setattr(Room, "ptx", lambda room, s: broken if s == stem else own(room, s))
    with pytest.raises((SimulationError, AssertionError)):
        computed(CASE)


def test_nothing_is_noticed_where_nothing_is_missing():
    computed(CASE)
