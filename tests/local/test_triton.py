"""Local attention's Triton kernels in the interpreter; tests/triton_compiled compiles them.

What they allocate, and where they write, starts as NaN; memory beside their arguments is out of
bounds.
"""

from __future__ import annotations

import itertools
import math
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from local_case import LocalCase, LocalInputs
from local_cases import CASES
from torch import Tensor
from triton.runtime.errors import InterpreterError
from triton_interpreted.interpreter import only_known_memory

from fused_attention.local.call import LocalCall
from fused_attention.local.door import prepare
from fused_attention.triton_kernels import (
    local_backward_key,
    local_backward_query,
    local_kernel,
    local_tile,
)
from fused_attention.triton_kernels.local import local_forward
from fused_attention.triton_kernels.local_backward import local_backward
from fused_attention.triton_kernels.local_backward_key import blocks_that_reach
from fused_attention.triton_kernels.local_tile import local_windows

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU")
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def spread(cases: tuple[LocalCase, ...]) -> list[LocalCase]:
    """Each case in one dtype, each dtype in a third of the cases."""
    pairs = zip(cases, itertools.cycle(DTYPES), strict=False)
    return [case.with_dtype(dtype) for case, dtype in pairs]


@pytest.mark.parametrize("case", spread(CASES), ids=lambda case: f"{case}-{case.dtype}")
def test_results_and_gradients(case: LocalCase, poisoned_allocations: None) -> None:
    inputs = case.make()
    inputs.assert_results(*inputs.run("triton"))


def call_of(inputs: LocalInputs) -> LocalCall:
    options = {"sigma": inputs.sigma, **inputs.options}
    operands = inputs.query, inputs.key, inputs.value, inputs.position
    width, sigma, mode, scale = (options[x] for x in ("width", "sigma", "mode", "scale"))
    return prepare(*operands, width, sigma, options.get("key_lengths"), mode, scale)[1]


def kernels_alone(call: LocalCall, upstream: tuple[Tensor, Tensor], known: Any = ()) -> list[Any]:
    """out, lse and the gradients; grad_out and grad_lse are NaN in rows that see no key.

    known: what of key and value the forward may touch; default all.
    """
    out, lse = (torch.full_like(x, math.nan) for x in call.empty_results())
    with only_known_memory(call.query, *(known or call[1:3]), *call[3:6], out, lse):
        local_forward(call, out, lse)
    dead = lse == -math.inf
    grad_out, grad_lse = upstream
    given = grad_out.masked_fill(dead[..., None], math.nan), grad_lse.masked_fill(dead, math.nan)
    grads = [None if x is None else torch.full_like(x, math.nan) for x in call[:5]]
    with only_known_memory(*call[:6], out, lse, *given, *grads):
        local_backward(call, out, lse, *given, *grads)
    return [out, lse, *grads]


def assert_kernels(case: LocalCase) -> None:
    inputs = case.make()
    found = kernels_alone(call_of(inputs), inputs.upstream)
    inputs.assert_results(*(x for x in found if x is not None))


MIXED = LocalCase(
    "mixed",
    2,
    4,
    2,
    70,
    90,
    20,
    40,
    width=9.5,
    sigma="query",
    key_lengths=(90, 41),
    layout="sliced",
)
WIDE = LocalCase("wide", 1, 2, 1, 40, 70, 70, 130, width=math.inf, sigma="query", mode="log_bias")
SMALL = LocalCase("small", 1, 2, 1, 40, 50, width=5, sigma="query", key_lengths=(41,))


@pytest.mark.parametrize("case", [MIXED, WIDE], ids=str)
def test_touches_its_arguments_only(case: LocalCase) -> None:
    assert_kernels(case)


def test_keys_outside_of_all_windows_are_not_loaded() -> None:
    """Neither they nor the values: their memory is out of bounds."""
    inputs = LocalCase("apart", 1, 1, 1, 30, 400, width=3).make()
    call = call_of(inputs)._replace(position=torch.linspace(120.5, 170.5, 30).expand(1, 1, 30))
    call = call._replace(position=call.position.contiguous())
    seen = slice(117, 174)
    out, lse, *_ = kernels_alone(call, inputs.upstream, [x[:, :, seen] for x in call[1:3]])
    nearby = call._replace(key=call.key[:, :, seen], value=call.value[:, :, seen])
    nearby = nearby._replace(position=call.position - 117)
    torch.testing.assert_close((out, lse), tuple(kernels_alone(nearby, inputs.upstream)[:2]))


def test_repeats_bit_for_bit() -> None:
    inputs = SMALL.make()
    first, second = (kernels_alone(call_of(inputs), inputs.upstream) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_many_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the blocks whose windows reach a key takes more than one step."""
    monkeypatch.setattr(local_backward_key, "_LOOK", tl.constexpr(2))
    assert_kernels(LocalCase("many", 1, 2, 1, 150, 60, width=4, sigma="query", positions="rising"))


@triton.jit
def _longer_windows(position, sigma, exists, half, rows_k, inverse, HAS_SIGMA):  # noqa: N803
    found = local_windows(position, sigma, exists, half, rows_k, inverse, HAS_SIGMA)
    p, inverse, begin, end = found
    return p, inverse, tl.maximum(begin - 1, 0), end


@triton.jit
def _first_window(begin, end):
    return tl.min(begin, 0), tl.min(end, 0)


@triton.jit
def _weighs_the_denominator(products, t, visible, scale, LOG_BIAS):  # noqa: N803
    return tl.where(visible, products * scale - 0.5 * t * t, float("-inf"))


@triton.jit
def _flat(t):
    return t * 0.0 + 1.0


@triton.jit
def _dead_rows_alive(lse, delta, exists):
    row_lse = tl.load(lse, mask=exists, other=float("-inf"))
    return row_lse, tl.load(delta, mask=exists, other=0.0)


@triton.jit
def _last_block_missed(windows, blocks, k_begin, k_end):
    first, last = blocks_that_reach(windows, blocks, k_begin, k_end)
    return first, last - 1


@triton.jit
def _masks_forgotten(base, rows, exists, row_stride, columns, columns_end):
    pointers = base + rows[:, None].to(tl.int64) * row_stride + columns[None, :]
    return tl.load(pointers, mask=(columns < columns_end)[None, :] & (rows >= 0)[:, None])


PLANTED: tuple[tuple[ModuleType, str, Any], ...] = (
    (local_kernel, "local_windows", _longer_windows),
    (local_kernel, "window_union", _first_window),
    (local_kernel, "local_scores", _weighs_the_denominator),
    (local_kernel, "gaussian", _flat),
    (local_kernel, "load_columns", _masks_forgotten),
    (local_tile, "gaussian", _flat),
    (local_backward_query, "window_union", _first_window),
    (local_backward_query, "load_natural_statistics", _dead_rows_alive),
    (local_backward_key, "load_natural_statistics", _dead_rows_alive),
    (local_backward_key, "blocks_that_reach", _last_block_missed),
    (local_backward_key, "local_windows", _longer_windows),
    (local_backward_key, "load_columns", _masks_forgotten),
)


@pytest.mark.parametrize(("module", "name", "bug"), PLANTED)
def test_planted_bugs_are_found(
    module: ModuleType, name: str, bug: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, bug)
    with pytest.raises((AssertionError, InterpreterError), match="exceeds|differs|OutOfBounds"):
        assert_kernels(SMALL)
