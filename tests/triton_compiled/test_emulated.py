"""The kernels as Triton compiles them for GPUs, executed by the PTX emulator.

It reports every access outside of a tensor, every race between warps or with an asynchronous copy,
every read of what has not arrived. Allocations are poisoned: what no kernel writes is NaN.
"""

from __future__ import annotations

import pytest
from triton_compiled.cases import (
    ADDITIVE_CASES,
    CASES,
    DECODE_CASES,
    FORWARD_CASES,
    LOCAL_CASES,
    MAPS_CASES,
)
from triton_compiled.emulate import Emulator
from triton_compiled.execute import attend, decode, look, move, run_mechanism

pytestmark = pytest.mark.slow
# A fixed schedule of warps and copies on one chip, a random one on the other.
each_chip = pytest.mark.parametrize(
    "emulator", [lambda: Emulator("sm_80"), lambda: Emulator("sm_90", seed=1)], ids=["80", "90"]
)


@each_chip
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case, emulator, poisoned_allocations):
    attend(case, emulator())


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_gradients_without_atomic_additions(case, poisoned_allocations):
    """What deterministic=True takes on Hopper, where the other form is the usual one."""
    emulator = Emulator("sm_90")
    attend(case, emulator, deterministic=True)
    assert "backward_query_kernel" in [name for name, _ in emulator.reports]


@each_chip
@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_forward_mode(case, emulator, poisoned_allocations):
    move(case, emulator())


@each_chip
@pytest.mark.parametrize("case", FORWARD_CASES, ids=str)
def test_forward(case, emulator, poisoned_allocations):
    attend(case, emulator(), backward=False)


@each_chip
@pytest.mark.parametrize("case", DECODE_CASES, ids=str)
def test_decoding(case, emulator, poisoned_allocations):
    decode(case, emulator())


@each_chip
@pytest.mark.parametrize("case", MAPS_CASES, ids=str)
def test_maps(case, emulator, poisoned_allocations):
    look(case, emulator())


@each_chip
@pytest.mark.parametrize("case", [*ADDITIVE_CASES, *LOCAL_CASES], ids=str)
def test_additive_and_local_attention(case, emulator, poisoned_allocations):
    run_mechanism(case, emulator())
