"""Both forms of the backward, what the matrix of backends does not show, and planted bugs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from attention_case import AttentionCase
from shapes import CASES
from triton.runtime.errors import InterpreterError
from triton_interpreted.kernel_calls import call_of, gradients_of

from fused_attention import attention
from fused_attention.masks import UNBOUNDED, Band
from fused_attention.triton_kernels import (
    backward,
    backward_bias,
    backward_bias_kernel,
    backward_key,
    backward_key_steps,
    backward_query,
    backward_query_steps,
)
from fused_attention.triton_kernels.backward_configs import KINDS, backward_candidates

BY_NAME = {case.name: case for case in CASES}
# Every feature of the key kernel, edges of tiles on both sides, and what may be empty.
FUSED = (
    *("odd_lengths", "more_queries", "no_queries", "no_keys", "dim_80", "latent", "grouped_heads"),
    *("causal_more_queries", "window", "window_far_away", "offsets_window", "kv_lengths_causal"),
    *("bias_1hqk", "alibi_both_sides", "softcap", "sinks", "dropout", "everything"),
    *("layout_sliced", "layout_shared", "packed_lengths_differ", "packed_everything"),
)
ATOMIC = [BY_NAME[name] for name in FUSED]
ATOMIC += [BY_NAME["everything"].with_dtype(dtype) for dtype in (torch.bfloat16, torch.float16)]


def assert_right(case: AttentionCase, fused: bool, with_grad_lse: bool = True) -> None:
    inputs = case.make()
    grads, *output_grads = gradients_of(inputs, fused, with_grad_lse)
    inputs.assert_gradients(grads, *output_grads)


@pytest.mark.parametrize("case", ATOMIC, ids=lambda case: f"{case}-{case.dtype}")
def test_fused_form_within_budget(case: AttentionCase) -> None:
    assert_right(case, fused=True)


@pytest.mark.parametrize("name", ["window", "packed_everything", "layout_sliced", "kv_lengths"])
def test_deterministic_form_stays_inside_of_its_tensors(name: str) -> None:
    assert_right(BY_NAME[name], fused=False)


@pytest.mark.parametrize("fused", [False, True])
def test_without_a_gradient_of_lse(fused: bool) -> None:
    assert_right(BY_NAME["causal"], fused, with_grad_lse=False)


def test_forms_differ_in_dq_alone() -> None:
    inputs = AttentionCase("", batch=1, heads_kv=1, len_q=150, band=Band.sliding(40)).make()
    one, other = (gradients_of(inputs, fused)[0] for fused in (False, True))
    assert torch.equal(one.key, other.key) and torch.equal(one.value, other.value)
    torch.testing.assert_close(one.query, other.query)


@pytest.mark.parametrize("fused", [False, True])
def test_takes_a_merge_over_more_keys(fused: bool) -> None:
    """Gradients of the keys at hand are then those of attention to all keys."""
    inputs = AttentionCase("", len_k=90).make()
    half = replace(inputs, key=inputs.key[:, :, :37], value=inputs.value[:, :, :37])
    call = call_of(half)
    out, lse = inputs.reference()
    grad_out, grad_lse = inputs.random_output_gradients()
    grads = [torch.empty_like(x) for x in (call.query, call.key, call.value)]
    args = (call, out, lse, grad_out, grad_lse, torch.empty_like(lse), *grads, None)
    backward.attention_backward(*args, deterministic=not fused, fused=fused)
    exact = inputs.exact_gradients(grad_out, grad_lse)
    torch.testing.assert_close(grads[1], exact.key[:, :, :37].float())
    torch.testing.assert_close(grads[2], exact.value[:, :, :37].float())


def test_repeats_bit_for_bit() -> None:
    inputs = BY_NAME["everything"].make()
    first, second = (gradients_of(inputs, False)[0] for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_atomic_additions_are_refused_where_bits_have_to_repeat() -> None:
    call = call_of(BY_NAME["plain"].make())
    nothing: Any = None
    with pytest.raises(ValueError, match="fused: must be False with deterministic=True"):
        backward.attention_backward(call, *[nothing] * 9, deterministic=True, fused=True)


@pytest.mark.parametrize("deterministic", [False, True])
def test_atomic_additions_only_where_nobody_asks_for_equal_bits(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the chip is one on which they are faster."""
    monkeypatch.setattr(backward, "use_fused_form", lambda *choice: True)
    launched: list[Any] = []
    original = backward.launch
    monkeypatch.setattr(
        backward, "launch", lambda kernel, *rest: (launched.append(kernel), original(kernel, *rest))
    )
    x = torch.randn(1, 1, 5, 16, requires_grad=True)
    attention(x, x, x, deterministic=deterministic, backend="triton").sum().backward()
    assert (backward_query.backward_query_kernel in launched) == deterministic


@pytest.mark.parametrize("programs", [1, 7, 10_000])
@pytest.mark.parametrize("shape", ["bhqk", "1hqk", "b11k", "1h1k", "11q1", "1111"])
def test_any_split_of_the_sum_of_a_broadcast_bias(
    shape: str, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward_bias, "_PROGRAMS", programs)
    case = AttentionCase(
        "", batch=2, len_q=40, len_k=90, bias=shape, band=Band.window(50, 9), bias_hides=0.1
    )
    assert_right(case, fused=False)


def test_bias_between_other_numbers() -> None:
    """Strides of the bias's gradient are its own, and nothing beside it is written."""
    inputs = AttentionCase("", len_q=33, len_k=41, bias="1hqk").make()
    dense = gradients_of(inputs, False)[0].bias
    assert dense is not None and inputs.bias is not None
    wide = torch.zeros(1, 2, 41, 70)
    wide[:, :, :, 10:43] = inputs.bias.mT
    object.__setattr__(inputs, "bias", wide[:, :, :, 10:43].mT)
    found = gradients_of(inputs, False)[0].bias
    assert found is not None and torch.equal(found, dense)


LENGTHS = (1, 2, 3, 5)
ENDS = (0, 1, 3, UNBOUNDED)


def test_which_problems_may_have_dead_rows() -> None:
    """Never overlooked, and nothing that a dense problem's numbers can tell is guessed."""
    plain = call_of(BY_NAME["plain"].make())
    for len_q, len_k, left, right in itertools.product(LENGTHS, LENGTHS, ENDS, ENDS):
        for offset in range(-4, 5):
            band = Band(left, right, offset)
            dead = not band.mask(len_q, len_k).any(dim=1).all()
            call = plain._replace(
                max_seqlen_q=len_q, max_seqlen_k=len_k, left=left, right=right, offset=offset
            )
            assert backward._may_have_dead_rows(call) == dead, (len_q, len_k, band)


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90", "sm_100", "gfx942", "interpreter"])
def test_configs_are_what_kernels_can_take(arch: str) -> None:
    dims = (1, 16, 64, 80, 128, 192, 256, 512)
    for kind, dim, window in itertools.product(KINDS, dims, (64, 1 << 30)):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            for config in backward_candidates(kind, dim, dim, dtype, arch, window):
                assert config.block_kv % 32 == 0  # one call of Philox serves 32 keys
                assert config.block_q >= 16  # the least that a product takes


@triton.jit
def _everything_unmasked(begin, end, full_begin, full_end, BLOCK: tl.constexpr):  # noqa: N803
    return begin, tl.cdiv(end, BLOCK) * BLOCK


@triton.jit
def _one_step_too_many(begin, end, full_begin, full_end, BLOCK: tl.constexpr):  # noqa: N803
    first = tl.minimum(tl.maximum(full_begin // BLOCK * BLOCK, begin), end)
    return first, tl.maximum(full_end // BLOCK * BLOCK, first)


@triton.jit
def _dead_rows_alive(lse, delta, q_row, len_q):
    exists = q_row < len_q
    row_lse = tl.load(lse + q_row, mask=exists, other=0.0)
    return row_lse * 1.4426950408889634, tl.load(delta + q_row, mask=exists, other=0.0)


@triton.jit
def _dead_rows_loaded(
    base,
    q_row,
    lse,
    rows_q,
    row_stride,
    VALUE_DIM: tl.constexpr,  # noqa: N803
    VALUE_BLOCK: tl.constexpr,  # noqa: N803
    CHECK_ROWS: tl.constexpr,  # noqa: N803
    DEAD_ROWS: tl.constexpr,  # noqa: N803
):
    columns = tl.arange(0, VALUE_BLOCK)
    mask = (q_row < rows_q)[:, None] & (columns < VALUE_DIM)[None, :]
    return tl.load(base + q_row[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _dropout_of_the_next_query(
    rng_state, stream, q_row, k_begin, threshold, BLOCK_KV: tl.constexpr
):  # noqa: N803
    return _dropout_keep(rng_state, stream, q_row + 1, k_begin, threshold, BLOCK_KV)


_dropout_keep = backward_key_steps.dropout_keep

# Has whole tiles between its edges, for blocks of queries and of keys.
WIDE = AttentionCase("wide", batch=1, heads_q=1, len_q=200, band=Band.window(150, 20))
PLANTED: tuple[tuple[ModuleType, str, Any, str], ...] = (
    (backward_key, "split_steps", _everything_unmasked, "window"),
    (backward_query, "split_steps", _everything_unmasked, "window"),
    (backward_key, "split_steps", _one_step_too_many, "wide"),
    (backward_query, "split_steps", _one_step_too_many, "wide"),
    (backward_key_steps, "load_statistics", _dead_rows_alive, "kv_lengths_causal"),
    (backward_key_steps, "load_grad_out", _dead_rows_loaded, "causal_more_queries"),
    (backward_query, "load_grad_out", _dead_rows_loaded, "causal_more_queries"),
    (backward_bias_kernel, "load_grad_out", _dead_rows_loaded, "bias_hides_all"),
    (backward_key_steps, "dropout_keep", _dropout_of_the_next_query, "dropout"),
    (backward_query_steps, "dropout_keep", _dropout_of_the_next_query, "dropout"),
)


def test_a_window_wider_than_a_tile() -> None:
    assert_right(WIDE, fused=False)


@pytest.mark.parametrize(
    ("module", "name", "bug", "case"),
    PLANTED,
    ids=lambda x: getattr(x, "__name__", str(x)).split(".")[-1],
)
def test_planted_bugs_are_found(
    module: ModuleType, name: str, bug: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, bug)
    with pytest.raises((AssertionError, InterpreterError), match="gradient of|OutOfBounds"):
        assert_right(WIDE if case == WIDE.name else BY_NAME[case], fused=False)
