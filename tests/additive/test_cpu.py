"""The CPU kernels of additive attention: every instruction set, within the error budget."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from additive_case import CASES, DTYPES, AdditiveCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fused_attention import Band, _ext, additive_attention, merge_attention
from fused_attention.additive import cpu
from fused_attention.additive.call import AdditiveCall

pytestmark = pytest.mark.usefixtures("isa")
SMALL = AdditiveCase("small", batch=1, len_q=70, len_k=130, dim=24, value_dim=20)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_results_within_budget(case, dtype, poisoned_allocations):
    inputs = case.with_dtype(dtype).make()
    inputs.assert_results(*inputs.run("cpu"))


@st.composite
def additive_cases(draw) -> AdditiveCase:
    len_k = draw(st.integers(0, 150))
    batch = draw(st.integers(1, 3))
    band = st.builds(
        Band.window,
        *(st.none() | st.integers(0, 90),) * 2,
        st.none() | st.integers(-100, 100),
    )
    lengths = st.none() | st.tuples(*(st.integers(0, len_k),) * batch)
    return AdditiveCase(
        "drawn",
        batch=batch,
        heads=draw(st.integers(0, 3)),
        len_q=draw(st.integers(1, 140)),
        len_k=len_k,
        dim=draw(st.integers(1, 70)),
        value_dim=draw(st.integers(1, 70)),
        dtype=draw(st.sampled_from(DTYPES)),
        band=draw(band),
        key_lengths=draw(lengths),
        layout=draw(st.sampled_from(["contiguous", "swapped", "sliced"])),
        magnitude=draw(st.sampled_from([0.1, 1.0, 8.0, 60.0])),
        v_magnitude=draw(st.sampled_from([0.3, 1.0])),
    )


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(additive_cases())
def test_drawn_problems(case):
    inputs = case.make(3)
    inputs.assert_results(*inputs.run("cpu"), name=f"{case}: ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_that_cancel_and_saturate(dtype):
    """q near -k at every size: no tanh may lose what q + k keeps; 60 + (-59) is 1."""
    size = torch.tensor([0.5, 3.0, 9.9, 10.6, 20.0, 43.0, 60.0, 1e3, 1e30], dtype=dtype)
    delta = torch.tensor([-1.0, -1e-3, 0.0, 0.25, 1.0], dtype=dtype)
    query = size[None, :, None].expand(1, 9, 1).contiguous()
    for sign in (1.0, -1.0):
        for step in delta:
            key, value = sign * (step - size), torch.ones(1, 1, 1, dtype=dtype)
            for i in range(9):
                operands = sign * query[:, i : i + 1], key[None, i : i + 1, None], value
                lse = additive_attention(
                    *operands, torch.ones(1, dtype=dtype), return_lse=True, backend="cpu"
                )[1]
                exact = torch.tanh(operands[0].double() + operands[1].double())
                error = (lse.double() - exact[..., 0]).abs().max().item()
                assert error < 4 * torch.finfo(dtype).eps, (size[i], step, sign)


def test_tiles_with_and_without_large_numbers_mix():
    """One key and one query beyond the bound: their tiles, and only those, go the exact way."""
    inputs = replace(SMALL, len_q=130, len_k=200).make()
    inputs.query[0, 0, 70, 3] = 55.0
    inputs.key[0, 0, 150, 3] = -54.5
    inputs.key[0, 1, 10, :] = 300.0
    inputs.assert_results(*inputs.run("cpu"))


def test_nan_reaches_the_rows_that_see_it_only():
    inputs = SMALL.make()
    inputs.query[0, 0, 5, 3] = torch.nan
    inputs.query[0, 0, 6, 3] = 1e4  # beyond the bound, in the same lane
    out, lse = additive_attention(
        inputs.query, inputs.key, inputs.value, inputs.v, return_lse=True, backend="cpu"
    )
    assert out[0, 0, 5].isnan().all() and lse[0, 0, 5].isnan()
    out[0, 0, 5] = lse[0, 0, 5] = 0
    assert out.isfinite().all() and lse.isfinite().all()


def grads_of(case: AdditiveCase) -> list[Tensor]:
    return list(case.make().run("cpu"))


THREADED = (
    replace(SMALL, batch=1, heads=1, len_q=400, len_k=300),
    replace(SMALL, heads=3, len_q=200, band=Band.causal(), dtype=torch.bfloat16),
    replace(
        SMALL, batch=3, len_q=150, key_lengths=(0, 130, 77), v_heads=True, dim=16, value_dim=16
    ),
)


@pytest.mark.parametrize("case", THREADED, ids=("one_head", "causal", "lengths"))
def test_results_do_not_depend_on_threads_nor_on_the_run(case):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = grads_of(case)
        for threads in (2, 3, 16, 16):
            torch.set_num_threads(threads)
            for found, expected in zip(grads_of(case), alone, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


def test_backward_takes_a_globally_merged_output():
    """Two halves of the keys, each with the merged out and lse: the gradients of the whole."""
    query, key, value = (torch.randn(1, 2, n, 16, dtype=torch.float64) for n in (70, 100, 100))
    v = torch.randn(2, 16, dtype=torch.float64)
    rest = (v, None, 1 << 30, 1 << 30, 0)
    whole = AdditiveCall(query, key, value, *rest)
    results = cpu.forward(whole)
    grads = [torch.randn_like(x) for x in results]
    exact = cpu.backward(whole, grads, results, [True] * 4)
    halves = [
        AdditiveCall(query, key[:, :, s], value[:, :, s], *rest)
        for s in (slice(0, 37), slice(37, 100))
    ]
    merged = merge_attention(*cpu.forward(halves[0]), *cpu.forward(halves[1]))
    torch.testing.assert_close(merged, results)
    first, second = (cpu.backward(half, grads, merged, [True] * 4) for half in halves)
    torch.testing.assert_close(first[0] + second[0], exact[0])
    torch.testing.assert_close(first[3] + second[3], exact[3])
    for index in (1, 2):
        torch.testing.assert_close(torch.cat([first[index], second[index]], 2), exact[index])


def test_offsets_beyond_32_bits():
    """Heads 2**31 elements apart: only the touched pages of the reservation become memory."""
    stride = 1 << 31
    reserved = torch.empty(2 * stride, dtype=torch.bfloat16)
    key = reserved.as_strided((1, 2, 5, 64), (2 * stride, stride, 64, 1))
    key.copy_(torch.randn(1, 2, 5, 64))
    dense, v = key.contiguous(), torch.randn(64)
    out = additive_attention(key, key, key, v, backend="cpu")
    expected = additive_attention(dense, dense, dense, v, backend="cpu")
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_memory_is_linear():
    """64 MB of scores would be seen; what the call takes beyond its results is a few tiles."""
    query, key = torch.randn(1, 1, 4096, 1), torch.randn(1, 1, 4096, 1)
    before = torch.randn(1)  # torch's own allocations are counted by the profiler
    with torch.profiler.profile(profile_memory=True) as profile:
        additive_attention(query, key, key, before, backend="cpu")
    sizes = [event.self_cpu_memory_usage for event in profile.events()]
    assert 0 < sum(size for size in sizes if size > 0) < 1 << 20


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setattr(_ext, "cpu_isa", lambda: "avx1024")
    with pytest.raises(RuntimeError, match="instruction set 'avx1024' is not available"):
        grads_of(SMALL)


@pytest.mark.parametrize("tier", _ext.available_cpu_isas())
def test_every_tier_has_kernels(tier, monkeypatch):
    monkeypatch.setattr(_ext, "cpu_isa", lambda: tier)
    inputs = SMALL.make()
    inputs.assert_results(*inputs.run("cpu"))
    assert math.isfinite(inputs.run("cpu")[0].sum().item())
