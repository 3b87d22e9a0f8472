"""What is left out of the kernels' PTX does not go unnoticed.

Triton puts more barriers than it takes, so one of them may go without harm; each wait is needed.
"""

from __future__ import annotations

import re

import pytest
import torch
from attention_case import AttentionCase
from decode_case import DecodeCase
from ptxsim.tests.mutations import assert_found, change_all
from triton_compiled.cases import ADDITIVE_CASES, LOCAL_CASES
from triton_compiled.emulate import Emulator
from triton_compiled.execute import attend, decode, run_mechanism

from fused_attention.masks import Band

pytestmark = pytest.mark.slow
BF16 = torch.bfloat16
FORWARD = AttentionCase(
    "few", 1, 2, 1, len_q=130, len_k=200, head_dim=64, band=Band.causal(), dtype=BF16
)
DECODE = DecodeCase("parts", (700,), 4, 1, head_dim=64, dtype=BF16)
BARRIER, COPY_WAIT = r"bar\.sync[^;]*;", r"cp\.async\.wait_group[^;]*;"
BULK_WAIT, PRODUCT_WAIT = r"mbarrier\.try_wait[^;]*;", r"wgmma\.wait_group[^;]*;"
# chip, kernel, what is left out at once, what is reported
ALL = [
    ("sm_80", "forward_kernel", BARRIER, "race"),
    ("sm_80", "forward_kernel", COPY_WAIT, "race"),
    ("sm_80", "decode_kernel", BARRIER, "race"),
    ("sm_80", "decode_kernel", COPY_WAIT, "race"),
    ("sm_90", "forward_kernel", BARRIER, "race"),
    ("sm_90", "forward_kernel", BULK_WAIT, "race|memory"),
    ("sm_90", "forward_kernel", PRODUCT_WAIT, "race"),
    ("sm_80", "additive_kernel", BARRIER, "race"),
    ("sm_80", "additive_backward_rows_kernel", BARRIER, "race"),
    ("sm_90", "local_kernel", BARRIER, "race"),
    ("sm_90", "local_backward_key_kernel", BARRIER, "race"),
]
EACH = [
    ("sm_80", "forward_kernel", COPY_WAIT, "race"),
    ("sm_80", "decode_kernel", COPY_WAIT, "race"),
    ("sm_90", "forward_kernel", BULK_WAIT, "race|memory"),
]


def run(arch: str, kernel: str, edit) -> float:
    """Execute with an edited kernel; 0.0: nothing was noticed."""
    emulator = Emulator(arch, edit=lambda name, ptx: edit(ptx) if name == kernel else ptx)
    if kernel == "decode_kernel":
        decode(DECODE, emulator)
    elif kernel.startswith(("additive", "local")):
        cases = ADDITIVE_CASES if kernel.startswith("additive") else LOCAL_CASES
        run_mechanism(cases[0], emulator)
    else:
        attend(FORWARD, emulator, backward=False)
    return 0.0


def ptx_of(arch: str, kernel: str) -> str:
    """The PTX of a kernel, which runs as it is."""
    found: list[str] = []
    run(arch, kernel, lambda ptx: found.append(ptx) or ptx)
    return found[0]


@pytest.mark.parametrize(("arch", "kernel", "step", "kind"), ALL)
def test_missing_steps_are_noticed(arch, kernel, step, kind):
    assert_found(lambda: run(arch, kernel, change_all(step, "")), kind)


@pytest.mark.parametrize(("arch", "kernel", "step", "kind"), EACH)
def test_each_missing_wait_is_noticed(arch, kernel, step, kind):
    ptx = ptx_of(arch, kernel)
    places = [match.span() for match in re.finditer(step, ptx)]
    assert places
    for start, end in places:
        broken = ptx[:start] + ptx[end:]
        assert_found(lambda broken=broken: run(arch, kernel, lambda _: broken), kind)


def test_wrong_numbers_are_noticed():
    """Keys beyond the diagonal count: the mask's -inf becomes 0."""
    edit = change_all(r"0fFF800000", "0f00000000")
    assert_found(lambda: run("sm_80", "forward_kernel", edit), "numbers")
