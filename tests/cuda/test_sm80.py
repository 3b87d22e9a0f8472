"""The kernels of csrc/cuda/sm80, executed from their PTX: within budget of the fp64 reference.

The emulator reports every access outside of a buffer, every race between warps, every read of what
has not been written or has not arrived. Outputs are NaN before; so is what no kernel may look at:
keys behind their length, rows behind the last sequence, dO of queries that see no key.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_case import AttentionCase
from cuda.emulate import ELEMENTS, Backward, Emulation, Forward, backward, forward
from shapes import CASES

from fused_attention.masks import Band

Case = AttentionCase
MAX_DIM = 256
DTYPES = tuple(ELEMENTS)
FEW = {"len_q": 130, "len_k": 100, "batch": 1, "heads_q": 2, "heads_kv": 1}


def served(case: Case) -> bool:
    """What the backend takes: see why_not in backends/cuda_sm80.py."""
    return case.bias is None and max(case.head_dim, case.value_dim or 0) <= MAX_DIM


# The problems that every backend is tested on, their dtypes in turn.
SHARED = [replace(case, dtype=DTYPES[n % 2]) for n, case in enumerate(filter(served, CASES))]
# Every kernel that is compiled: each dim of tiles and each dtype, over several tiles.
COMPILED = [
    Case(f"tiles_{dim}-{name}", head_dim=dim, dtype=dtype, band=Band.causal(), **FEW)
    for dim in (32, 64, 96, 128, 192, 256)
    for dtype, name in ELEMENTS.items()
]
# What touches single scores, in fragments of other shapes than those of dim 32.
_EVERYTHING = {
    "batch": 2,
    "heads_q": 2,
    "heads_kv": 1,
    "len_q": 70,
    "len_k": 90,
    "band": Band.window(40, 3),
    "softcap": 3.0,
    "alibi": "bh",
    "sinks": True,
    "dropout_p": 0.2,
    "kv_lengths": (90, 33),
    "band_offsets": (20, -10),
    "layout": "swapped",
}
FEATURES = [
    *(
        Case(f"everything_{dim}", head_dim=dim, dtype=DTYPES[n % 2], **_EVERYTHING)
        for n, dim in enumerate((64, 96, 128, 192, 256))
    ),
    *(
        Case(f"dropout_{dim}", head_dim=dim, dtype=DTYPES[n % 2], dropout_p=0.3, **FEW)
        for n, dim in enumerate((64, 128, 192, 256))
    ),
    Case("window_64", head_dim=64, batch=1, len_q=300, band=Band.window(33, 20)),
    Case("padded_112", head_dim=112, value_dim=72, batch=1, len_q=40, layout="swapped"),
    Case("unaligned_100", head_dim=100, batch=1, len_q=40, layout="sliced"),
    Case("group_of_8", head_dim=64, batch=1, heads_q=8, heads_kv=1, len_q=20, len_k=150),
]


def run(case: Case, how: Emulation) -> tuple[Forward, Backward]:
    """Forward, and backward from its results; both within budget."""
    inputs = case.make()
    result = forward(inputs, how)
    inputs.assert_forward(result.out, result.lse)
    grad_out, grad_lse = inputs.random_output_gradients()
    dead = (result.lse == -torch.inf)[..., None]
    if case.packed:
        dead = dead.transpose(0, 1)
    gradients = backward(
        inputs, result.out, result.lse, grad_out.masked_fill(dead, torch.nan), grad_lse, how
    )
    actual = (gradients.query, gradients.key, gradients.value, None, None)
    inputs.assert_gradients(actual, grad_out, grad_lse)
    exact = (grad_out.double() * inputs.exact[0]).sum(-1)
    exact = (exact.T if case.packed else exact).where(result.lse != -torch.inf, 0.0) - grad_lse
    alive = result.lse != -torch.inf
    torch.testing.assert_close(gradients.delta[alive], exact[alive].float(), rtol=0.02, atol=0.1)
    assert (gradients.delta[~alive] == 0).all()
    return result, gradients


# Warps and copies in a fixed order, and in a random one.
each_schedule = pytest.mark.parametrize("schedule", [None, 1], ids=["fixed", "random"])


@each_schedule
@pytest.mark.parametrize("case", SHARED, ids=str)
def test_shared_cases(case, schedule):
    run(case, Emulation(seed=schedule))


@each_schedule
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiled_kernels(case, schedule):
    """Without bank conflicts where tiles are moved and read."""
    result, gradients = run(case, Emulation(seed=schedule, count_banks=True))
    for reports in (result.reports, gradients.reports):
        for kernel, report in reports.items():
            for instruction in ("ldmatrix", "cp.async", "st.shared", "ld.shared"):
                assert report.banks.per_phase(instruction) == 1.0, (kernel, instruction)


@each_schedule
@pytest.mark.parametrize("case", FEATURES, ids=str)
def test_features(case, schedule):
    case = case if case.dtype in DTYPES else case.with_dtype(torch.bfloat16)
    run(case, Emulation(seed=schedule))


@pytest.mark.parametrize("name", ["causal", "dropout_causal", "packed_everything"])
def test_every_schedule_gives_the_same_bits(name):
    case = next(case for case in SHARED if case.name == name)
    inputs = case.make()
    first = forward(inputs)
    upstream = inputs.random_output_gradients()
    gradients = backward(inputs, first.out, first.lse, *upstream)
    for seed in (3, 4):
        how = Emulation(seed=seed)
        again = forward(inputs, how)
        assert torch.equal(again.out, first.out) and torch.equal(again.lse, first.lse)
        for mine, other in zip(
            gradients[:4], backward(inputs, first.out, first.lse, *upstream, how)[:4], strict=True
        ):
            assert torch.equal(mine, other)


def test_backward_takes_a_merged_result():
    """out and lse of more keys than the call knows: P then sums to less than 1."""
    whole = Case("whole", head_dim=64, batch=1, len_q=20, len_k=90, dtype=torch.bfloat16).make()
    out, lse = (x.to(y) for x, y in zip(whole.exact, (torch.bfloat16, torch.float32), strict=True))
    grad_out, grad_lse = whole.random_output_gradients()
    parts = [
        replace(whole, key=whole.key[:, :, keys], value=whole.value[:, :, keys])
        for keys in (slice(0, 50), slice(50, 90))
    ]
    found = [backward(part, out, lse, grad_out, grad_lse) for part in parts]
    query = found[0].query.float() + found[1].query.float()
    key, value = (torch.cat([x[n] for x in found], dim=2) for n in (1, 2))
    whole.assert_gradients((query.bfloat16(), key, value, None, None), grad_out, grad_lse)


def test_no_grad_lse_is_zero():
    inputs = Case("plain", head_dim=64, batch=1, dtype=torch.float16).make()
    result = forward(inputs)
    grad_out, grad_lse = inputs.random_output_gradients()
    without = backward(inputs, result.out, result.lse, grad_out, None)
    zero = backward(inputs, result.out, result.lse, grad_out, torch.zeros_like(grad_lse))
    for mine, other in zip(without[:4], zero[:4], strict=True):
        assert torch.equal(mine, other)
