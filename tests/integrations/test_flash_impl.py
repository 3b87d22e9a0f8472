"""The implementation in torch's registry: right while active, and gone without a trace."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F  # noqa: N812
from door_reports import door_reports
from integrations.sdpa_cases import CALLS, SdpaCall
from torch import Tensor, nn
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    list_flash_attention_impls,
    restore_flash_attention_impl,
)

from fused_attention.integrations import flash_override
from fused_attention.integrations.flash_override import Override
from fused_attention.integrations.torch_sdpa import NAME
from fused_attention.nn import recognition
from fused_attention.reference import dropout_keep_mask

OPERATORS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)
# What torch sends to its flash operator on the CPU.
FLASH = [
    call
    for call in CALLS
    if all(len(shape) == 4 for shape in call.shapes)
    and len({shape[0] for shape in call.shapes}) == 1
    and len({shape[-1] for shape in call.shapes}) == 1
    and not call.learned
    and call.name not in ("one shared head", "negative scale", "bias per head")
]


@pytest.fixture
def active(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recognition, "_FEWEST_SCORES", 0)
    activate_flash_attention_impl(NAME)
    yield
    if current_flash_attention_impl() is not None:
        restore_flash_attention_impl()


def operands() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 7, 8)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def test_importing_registers_and_does_no_more() -> None:
    code = (
        "import torch, fused_attention.integrations.torch_sdpa;"
        "from torch.nn import attention as a;"
        f"assert '{NAME}' in a.list_flash_attention_impls();"
        "assert a.current_flash_attention_impl() is None"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert NAME in list_flash_attention_impls()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("call", FLASH, ids=str)
def test_results_and_gradients(call: SdpaCall, dtype: torch.dtype, active: None) -> None:
    tensors, options = call.make(dtype)
    with door_reports() as lines:
        found = call.results(F.scaled_dot_product_attention, tensors, options)
    assert len(lines) == 2 and all("flash attention impl -> cpu:" in line for line in lines), lines
    restore_flash_attention_impl()
    call.assert_right(found, dtype)


def test_layouts_are_those_that_torch_promises(active: None) -> None:
    """Compilers plan with the layouts of torch's own kernels."""
    query, key, value = (x.detach() for x in operands())
    plain = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    for tensors in ((query, key, value), tuple(x.transpose(1, 2) for x in (query, key, value))):
        out, lse = plain(*tensors)
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            out, *tensors, out, lse, 0.0, False
        )
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = [mode.from_tensor(x) for x in tensors]
            fake_out, fake_lse = plain(*fakes)
            fake_gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                fake_out, *fakes, fake_out, fake_lse, 0.0, False
            )
        expected = (fake_out, fake_lse, *fake_gradients)
        for real, fake in zip((out, lse, *gradients), expected, strict=True):
            assert (real.shape, real.stride(), real.dtype) == (
                fake.shape,
                fake.stride(),
                fake.dtype,
            )


def test_what_no_kernel_can_do_is_torchs(active: None) -> None:
    wide = torch.randn(1, 1, 3, 600, requires_grad=True)
    with door_reports() as lines:
        out = F.scaled_dot_product_attention(wide, wide, wide)
        (gradient,) = torch.autograd.grad(out.sum(), wide)
    assert len(lines) == 2 and all("torch's own, because no fused" in line for line in lines)
    restore_flash_attention_impl()
    exact = F.scaled_dot_product_attention(wide, wide, wide)
    assert torch.equal(out, exact)
    assert torch.equal(gradient, torch.autograd.grad(exact.sum(), wide)[0])


def test_mask_and_is_causal_as_torchs_kernel_has_it(active: None) -> None:
    query, key, value = operands()
    mask = torch.rand(7, 7) < 0.7
    out = F.scaled_dot_product_attention(query, key, value, mask, is_causal=True)
    restore_flash_attention_impl()
    exact = F.scaled_dot_product_attention(query, key, value, mask, is_causal=True)
    assert torch.equal(out, exact)


def test_restores_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    tensors = operands()
    before = F.scaled_dot_product_attention(*tensors)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        for _ in range(2):
            activate_flash_attention_impl(NAME)
            assert current_flash_attention_impl() == NAME
            activate_flash_attention_impl(NAME)
            restore_flash_attention_impl()
            assert current_flash_attention_impl() is None
    assert caplog.records == []
    assert torch.equal(F.scaled_dot_product_attention(*tensors), before)


def test_removing_twice() -> None:
    override = Override()
    override.remove()
    override.remove()


def test_serves_torchs_modules(active: None) -> None:
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 7, 8)
    with door_reports() as lines:
        out, _ = attention(x, x, x, need_weights=False)
        out.sum().backward()
    assert len(lines) == 2
    restore_flash_attention_impl()
    torch.testing.assert_close(out, attention(x, x, x, need_weights=False)[0])


def test_compiled_code_needs_no_recompilation() -> None:
    """It calls the operator, whoever implements that."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    fast = torch.compile(F.scaled_dot_product_attention, backend=counter)
    tensors = operands()
    exact = fast(*tensors, is_causal=True)
    activate_flash_attention_impl(NAME)
    try:
        with door_reports() as lines:
            out = fast(*tensors, is_causal=True)
            gradients = torch.autograd.grad(out.sum(), tensors)
    finally:
        restore_flash_attention_impl()
    assert len(lines) == 2 and counter.frame_count == 1
    torch.testing.assert_close(out, exact)
    torch.testing.assert_close(gradients, torch.autograd.grad(exact.sum(), tensors))
    torch.compiler.reset()


@pytest.mark.slow
def test_inductor(active: None) -> None:
    torch.compiler.reset()
    fast = torch.compile(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    tensors = operands()
    out = fast(*tensors)
    gradients = torch.autograd.grad(out.sum(), tensors)
    exact = F.scaled_dot_product_attention(*tensors, is_causal=True)
    torch.testing.assert_close(out, exact)
    torch.testing.assert_close(gradients, torch.autograd.grad(exact.sum(), tensors))
    torch.compiler.reset()


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
def test_cuda_operators(causal: bool) -> None:
    """Their bodies run on any device: here against torch's on the CPU, with lower right masks."""
    query, key, value = operands()
    query = query[:, :, 2:]
    with torch.no_grad():
        out, lse, *state = flash_override.cuda_forward(query, key, value, 0.0, causal)
        gradients = flash_override.cuda_backward(
            torch.ones_like(out), query, key, value, out, lse, *state[:4], 0.0, causal, *state[4:6]
        )
    mask = torch.ones(5, 7, dtype=torch.bool).tril(2) if causal else None
    exact = F.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(out, exact)
    torch.testing.assert_close(gradients, torch.autograd.grad(exact.sum(), (query, key, value)))
    assert state[:4] == [None, None, 5, 7] and state[4].dtype == torch.uint64
    assert lse.shape == (2, 4, 5) and lse.is_contiguous()


def test_cuda_dropout_is_that_of_the_state() -> None:
    query, key, value = (x.detach() for x in operands())
    torch.manual_seed(5)
    out, lse, *state = flash_override.cuda_forward(query, key, value, 0.4)
    rng_state = state[4].view(torch.int64)
    keep = dropout_keep_mask(rng_state, 0.4, 2, 4, 7, 7, query.device)
    P = torch.softmax(query @ key.mT / 8**0.5, -1)
    exact = (P * keep / (1 - round(0.4 * 65536) / 65536)) @ value
    torch.testing.assert_close(out, exact)
    value.requires_grad_()
    args: tuple[Any, ...] = (out, lse, *state[:4], 0.4, False, *state[4:6])
    *_, grad_value = flash_override.cuda_backward(torch.ones_like(out), query, key, value, *args)
    weights = (P * keep / (1 - round(0.4 * 65536) / 65536)).sum(-2)
    torch.testing.assert_close(grad_value, weights.unsqueeze(-1).expand_as(value))
