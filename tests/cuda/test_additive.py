"""The kernels of csrc/cuda/additive, executed from their PTX: within budget of the fp64 formula.

The emulator reports every access outside of a buffer, every race between threads and every read of
what has not been written. Outputs are NaN before, and so is what no kernel may look at: keys behind
their length, dO and dlse of queries that see no key, what lies between the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from additive_case import CASES, AdditiveCase, AdditiveInputs
from cuda.additive_emulation import backward, call_of, forward, results
from cuda.emulate import Emulation
from ptxsim.instructions import floats
from torch import Tensor

from fused_attention.masks import Band

Case = AdditiveCase
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Several tiles of both sides, the last of them not full; several parts of the columns, too.
TILES = Case("tiles_of_both", batch=1, len_q=70, len_k=141, dim=40, value_dim=36, v_heads=True)
LARGE = [
    TILES,
    replace(TILES, name="odd_tiles", heads=1, dim=37, value_dim=33, layout="sliced"),
    replace(TILES, name="band", heads=0, v_heads=False, band=Band.window(50, 3)),
    replace(TILES, name="lengths", batch=3, heads=1, key_lengths=(0, 141, 70), layout="swapped"),
    replace(TILES, name="causal", heads=1, len_q=140, len_k=130, band=Band.causal()),
    Case("wide", batch=1, heads=1, len_q=5, len_k=9, dim=1000, value_dim=520, v_magnitude=0.1),
]
BY_NAME = {case.name: case for case in CASES}


def check(case: Case, dtype: torch.dtype, how: Emulation) -> None:
    inputs = case.with_dtype(dtype).make()
    inputs.assert_results(*results(inputs, how))


# The problems that every backend is tested on: all in fp32, half of them in each 16-bit type.
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shared_cases(case):
    check(case, torch.float32, Emulation())


@pytest.mark.parametrize("n", range(len(CASES)), ids=lambda n: CASES[n].name)
def test_shared_cases_in_16_bits(n):
    check(CASES[n], DTYPES[1 + n % 2], Emulation(seed=n))


@pytest.mark.parametrize("n", range(len(LARGE)), ids=lambda n: LARGE[n].name)
def test_large_cases(n):
    check(LARGE[n], DTYPES[n % 3], Emulation(seed=1))


def test_shared_memory_is_read_without_bank_conflicts():
    call = call_of(replace(TILES, heads=1, v_heads=False, len_k=66, dim=32).make())
    how = Emulation(count_banks=True)
    out, lse, reports = forward(call, how)
    *_, more = backward(call, out, lse, torch.ones_like(out), None, how)
    for kernel, report in (reports | more).items():
        assert report.banks.per_phase("ld.shared") == 1.0, kernel


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_ordinary_and_large_columns_side_by_side(dtype):
    """Three parts of the columns, each summed in another way."""
    shape = {"batch": 1, "heads": 1, "len_q": 20, "len_k": 66, "dim": 90}
    inputs = Case("ranges", **shape, dtype=dtype, column_scales=(1e-3, 1.0, 60.0)).make()
    inputs.assert_results(*results(inputs))


@pytest.mark.parametrize(("x", "y"), [(60, -59), (-59, 60), (8.5, -9.5), (9, 9), (-500, 499.75)])
def test_large_sums_cancel(x, y):
    """Neither of the two may be clamped."""
    inputs = Case("one", batch=1, heads=1, len_q=1, len_k=1, dim=1, value_dim=1).make()
    inputs = replace(
        inputs,
        query=torch.full_like(inputs.query, x),
        key=torch.full_like(inputs.key, y),
        v=torch.ones(1),
    )
    _, lse, _ = forward(call_of(inputs))
    expected = torch.tensor(x + y, dtype=torch.float64).tanh().item()
    assert lse.item() == pytest.approx(expected, abs=3e-7)


def test_tanh_near_zero_keeps_its_digits():
    """With one key the lse is the score, which is as good as an fp32 number can be."""
    case = Case("near_zero", batch=1, heads=1, len_q=64, len_k=1, dim=2, magnitude=1e-6)
    call = call_of(case.make())
    _, lse, _ = forward(call)
    sums = call.query.double() + call.key.double()
    exact = (sums.tanh() * call.v.double()).sum(-1)
    scale = (sums.abs() * call.v.double().abs()).sum(-1)
    assert ((lse.double() - exact).abs() <= 1e-6 * scale).all()


def _off(of: np.ufunc, relative: float) -> Callable[[np.ndarray], np.ndarray]:
    """A function that errs by up to `relative`, this way or that, as its bits fall."""

    def function(x: np.ndarray) -> np.ndarray:
        exact = np.asarray(of(x), np.float32)
        side = (np.asarray(x, np.float32).view(np.uint32) * np.uint32(2654435761)) >> np.uint32(16)
        wrong = 1.0 + relative * (side.astype(np.float64) / 32768.0 - 1.0)
        return (exact.astype(np.float64) * wrong).astype(np.float32)

    return function


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    """The emulator keeps instructions as functions; not those of this test."""
    sys.modules["ptxsim.launch"]._program.cache_clear()
    yield
    sys.modules["ptxsim.launch"]._program.cache_clear()


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("case", ["plain", "odd", "saturated"])
def test_approximations_may_be_as_wrong_as_ptx_allows(case, monkeypatch):
    """rcp.approx to 1 ulp, ex2.approx to 2^-22: what a GPU may do and the emulator does not."""
    monkeypatch.setitem(floats._FUNCTIONS, "rcp", _off(np.reciprocal, 2.0**-23))
    monkeypatch.setitem(floats._FUNCTIONS, "ex2", _off(np.exp2, 2.0**-22))
    for dtype in DTYPES[:2]:
        check(BY_NAME[case], dtype, Emulation())


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_every_schedule_gives_the_same_bits(dtype):
    inputs = replace(TILES, band=Band.causal(), dtype=dtype).make()
    first = results(inputs)
    for mine, other in zip(first, results(inputs, Emulation(seed=3)), strict=True):
        assert torch.equal(mine, other)


def small(**changed: object) -> AdditiveInputs:
    return replace(Case("small", batch=1, len_q=20, len_k=90), **changed).make()


def test_backward_takes_a_merged_result():
    """out and lse of more keys than the call knows: P then sums to less than 1."""
    whole = small()
    call = call_of(whole)
    out, lse, *_ = (x.float() for x in whole.plain(torch.float64))
    parts = [
        backward(
            call._replace(key=call.key[:, :, keys], value=call.value[:, :, keys]),
            *(out, lse, *whole.upstream),
        )
        for keys in (slice(0, 50), slice(50, 90))
    ]
    query, v = (parts[0][n] + parts[1][n] for n in (0, 3))
    key, value = (torch.cat([part[n] for part in parts], dim=2) for n in (1, 2))
    whole.assert_results(out, lse, query, key, value, v.sum(0))


def upstream_of(inputs: AdditiveInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, lse, _ = forward(call_of(inputs))
    return out, lse, *inputs.upstream


def test_no_grad_lse_is_zero():
    inputs = small()
    out, lse, grad_out, grad_lse = upstream_of(inputs)
    call = call_of(inputs)
    without = backward(call, out, lse, grad_out, None)
    zero = backward(call, out, lse, grad_out, torch.zeros_like(grad_lse))
    for mine, other in zip(without[:4], zero[:4], strict=True):
        assert torch.equal(mine, other)


def test_kernels_of_gradients_that_nobody_wants_do_not_run():
    inputs = small(len_k=20)
    call, given = call_of(inputs), upstream_of(inputs)
    everything = backward(call, *given)
    for wanted, kernels in (("query", {"query_gradient", "v_gradient"}), ("key", {"key_gradient"})):
        *found, reports = backward(call, *given, wanted=(wanted,))
        assert set(reports) == {"delta", *kernels}
        assert [x is not None for x in found] == [wanted == x for x in ("query", "key", "key")] + [
            wanted == "query"
        ]
        for mine, other in zip(found, everything[:4], strict=True):
            assert mine is None or torch.equal(mine, other)


def test_a_band_costs_no_more_than_its_tiles():
    """Twice the keys behind a window cost nothing; without a window they do."""
    window = Case("window", batch=1, heads=1, len_q=64, len_k=256, band=Band.window(10, 0))
    counts = {}
    for case in (window, replace(window, len_k=512), replace(window, band=Band(), len_k=512)):
        _, _, reports = forward(call_of(case.make()))
        counts[case.len_k, case.band == Band()] = reports["forward"].instructions
    assert counts[512, False] < 1.05 * counts[256, False]
    assert counts[512, True] > 3 * counts[512, False]
