"""Additive attention's Triton kernels in the interpreter; tests/triton_compiled compiles them.

What they allocate, and where they write, starts as NaN; memory beside their arguments is out of
bounds.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from additive_case import CASES, AdditiveCase, AdditiveInputs
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton_interpreted.interpreter import only_known_memory

from fused_attention import Band
from fused_attention.additive.call import AdditiveCall
from fused_attention.triton_kernels import (
    additive_backward,
    additive_backward_rows,
    additive_backward_tile,
    additive_backward_value,
    additive_configs,
    additive_kernel,
    additive_tile,
)
from fused_attention.triton_kernels.additive import additive_forward
from fused_attention.triton_kernels.additive_backward import Part
from fused_attention.triton_kernels.band import band_kv_range
from fused_attention.triton_kernels.scores import tanh

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

# Tiles of 1, 4 and 16 queries; dims and values of several steps; every kind of mask.
OWN_CASES = (
    AdditiveCase("few", len_q=3, len_k=40, dim=40, value_dim=20, key_lengths=(40, 13)),
    AdditiveCase("step", len_q=1, len_k=40, dim=70, key_lengths=(40, 13), dtype=FP16),
    AdditiveCase("thousand", 1, 1, len_q=2, len_k=5, dim=1000, value_dim=600, dtype=BF16),
    AdditiveCase("window", len_q=40, len_k=50, band=Band.window(20, 3, offset=-7), heads=1),
)


def spread(cases: tuple[AdditiveCase, ...]) -> list[AdditiveCase]:
    """Each case in one dtype, each dtype in a third of the cases."""
    dtypes = itertools.cycle((BF16, FP32, FP16))
    return [case.with_dtype(dtype) for case, dtype in zip(cases, dtypes, strict=False)]


@pytest.mark.parametrize("case", [*spread(CASES), *OWN_CASES], ids=lambda c: f"{c}-{c.dtype}")
def test_results_and_gradients(case: AdditiveCase, poisoned_allocations: None) -> None:
    inputs = case.make()
    inputs.assert_results(*inputs.run("triton"))


def call_of(inputs: AdditiveInputs) -> AdditiveCall:
    case, lengths = inputs.case, inputs.options["key_lengths"]
    band = case.band.resolve(case.len_q, case.len_k)
    v = inputs.v.expand(case.heads, case.dim).contiguous()
    operands = inputs.query, inputs.key, inputs.value
    return AdditiveCall(*operands, v, lengths, band.left, band.right, band.offset)


def kernels_alone(inputs: AdditiveInputs) -> list[Tensor]:
    """out, lse and all gradients; grad_out and grad_lse are NaN in rows that see no key."""
    call = call_of(inputs)
    out, lse = (torch.full_like(x, math.nan) for x in call.empty_results())
    given = [*call[:5], out, lse]
    with only_known_memory(*given):
        additive_forward(call, out, lse)
    dead = lse == -math.inf
    grad_out, grad_lse = inputs.upstream
    upstream = grad_out.masked_fill(dead[..., None], math.nan), grad_lse.masked_fill(dead, math.nan)
    grads = [torch.full_like(x, math.nan) for x in call[:4]]
    with only_known_memory(*given, *upstream, *grads):
        additive_backward.additive_backward(call, out, lse, *upstream, *grads)
    if not inputs.case.v_heads:
        grads[3] = grads[3].sum(0)
    return [out, lse, *grads]


def assert_kernels(case: AdditiveCase) -> None:
    inputs = case.make()
    inputs.assert_results(*kernels_alone(inputs))


MIXED = AdditiveCase(
    "mixed",
    len_q=37,
    len_k=50,
    dim=20,
    value_dim=40,
    band=Band.window(30, 2, offset=-4),
    key_lengths=(50, 21),
    v_heads=True,
    layout="sliced",
)


@pytest.mark.parametrize("case", [MIXED, *OWN_CASES[:2]], ids=str)
def test_touches_its_arguments_only(case: AdditiveCase) -> None:
    assert_kernels(case)


# P and dS of a head of MIXED take 37 * 50 * 8 bytes.
@pytest.mark.parametrize("part_bytes", [1, 16 * 50 * 8, 3 * 37 * 50 * 8], ids=str)
def test_parts(part_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(additive_backward, "PART_BYTES", part_bytes)
    assert_kernels(MIXED)


def test_parts_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of(MIXED.make())
    for part_bytes in (1, 5000, 20000, 50000, 1 << 20):
        monkeypatch.setattr(additive_backward, "PART_BYTES", part_bytes)
        parts = list(additive_backward._parts(call))
        rows = [
            (item, row)
            for part in parts
            for item in range(part.first_item, part.first_item + part.items)
            for row in range(part.first_query, part.first_query + part.rows)
        ]
        assert rows == list(itertools.product(range(4), range(37)))
        assert all(_bytes(part) <= max(part_bytes, 16 * 50 * 8) for part in parts)
        assert all(part.first_query % 16 == 0 for part in parts)


def _bytes(part: Part) -> int:
    return part.items * part.rows * 50 * 8


def test_repeats_bit_for_bit() -> None:
    inputs = MIXED.make()
    first, second = kernels_alone(inputs), kernels_alone(inputs)
    assert all(map(torch.equal, first, second))


@triton.jit
def _rough_tanh(x, ACCURATE: tl.constexpr):  # noqa: N803
    exact = tanh(x, True).to(tl.int32, bitcast=True)
    return (exact & -4096).to(tl.float32, bitcast=True)  # loses up to 2^-11


def test_tanh_of_eleven_bits_is_enough_for_16_bit_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of NVIDIA's instruction, which the interpreter has not."""
    monkeypatch.setattr(additive_tile, "tanh", _rough_tanh)
    for dtype in (BF16, FP16):
        assert additive_configs.native_tanh(dtype, "sm_90")
        assert_kernels(replace(MIXED, dtype=dtype))
    assert not additive_configs.native_tanh(BF16, "gfx942")
    assert not additive_configs.native_tanh(FP32, "sm_90")
    with pytest.raises(AssertionError, match="exceeds its budget"):
        assert_kernels(MIXED)


@triton.jit
def _everything_visible(left, right, offset, q_row, q_end, k_row, kv_length):
    return (q_row[:, None] < q_end) & (k_row[None, :] < kv_length)


@triton.jit
def _masks_forgotten(base, rows, exists, row_stride, columns, columns_end):
    pointers = base + rows[:, None].to(tl.int64) * row_stride + columns[None, :]
    return tl.load(pointers, mask=(columns < columns_end)[None, :] & (rows >= 0)[:, None])


@triton.jit
def _one_key_less(left, right, offset, q_begin, q_end, kv_length):
    begin, end = band_kv_range(left, right, offset, q_begin, q_end, kv_length)
    return begin, end - 1


@triton.jit
def _a_tile_less(left, right, offset, q_begin, q_end, kv_length):
    begin, end = band_kv_range(left, right, offset, q_begin, q_end, kv_length)
    return begin, end - 32


@triton.jit
def _dead_rows_alive(lse, delta, exists):
    row_lse = tl.load(lse, mask=exists, other=float("-inf"))
    return row_lse, tl.load(delta, mask=exists, other=0.0)


@triton.jit
def _linear(x, ACCURATE: tl.constexpr, NATIVE_TANH: tl.constexpr):  # noqa: N803
    return x


PLANTED: tuple[tuple[ModuleType, str, Any], ...] = (
    (additive_kernel, "visible_keys", _everything_visible),
    (additive_kernel, "load_columns", _masks_forgotten),
    (additive_kernel, "band_kv_range", _a_tile_less),
    (additive_tile, "load_columns", _masks_forgotten),
    (additive_backward_tile, "visible_keys", _everything_visible),
    (additive_backward_tile, "band_kv_range", _a_tile_less),
    (additive_backward_tile, "load_natural_statistics", _dead_rows_alive),
    (additive_backward_rows, "load_columns", _masks_forgotten),
    (additive_backward_rows, "band_kv_range", _one_key_less),
    (additive_backward_rows, "additive_tanh", _linear),
    (additive_backward_value, "load_columns", _masks_forgotten),
    (additive_backward_value, "band_q_range", _one_key_less),
)


@pytest.mark.parametrize(("module", "name", "bug"), PLANTED)
def test_planted_bugs_are_found(
    module: ModuleType, name: str, bug: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, bug)
    case = replace(MIXED, len_q=20, len_k=37, key_lengths=(37, 5), heads=1, v_heads=False)
    with pytest.raises((AssertionError, InterpreterError), match="exceeds|differs|OutOfBounds"):
        assert_kernels(case)
