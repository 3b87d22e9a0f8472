"""The CPU backend's own promises: instruction sets, memory layout, odd values, large strides."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fused_attention import Band, _ext, attention, attention_varlen, merge_attention
from fused_attention.backends import cpu
from fused_attention.backends.call import Call
from fused_attention.reference import attention_reference


def run_with_isa(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import torch, fused_attention as fa\n" + code],
        env={**os.environ, _ext.ISA_VARIABLE: isa},
        capture_output=True,
        text=True,
        timeout=120,
    )


def dense_call(query, key, value, band: Band) -> Call:
    band = band.resolve(query.shape[2], key.shape[2])
    lengths = (query.shape[2], key.shape[2])
    scalars = (query.shape[3] ** -0.5, 0.0, band.left, band.right, band.offset, 0.0)
    return Call(query, key, value, *(None,) * 8, *lengths, *scalars)


@pytest.mark.parametrize("isa", _ext.available_cpu_isas())
def test_environment_variable_forces_an_instruction_set(isa):
    result = run_with_isa(isa, "from fused_attention import _ext; print(_ext.cpu_isa())")
    assert result.stdout.split() == [isa], result.stderr


def test_an_unknown_instruction_set_is_a_reason_not_a_crash():
    code = "print(fa.explain(*[torch.ones(1, 1, 2, 4)] * 3))"
    result = run_with_isa("avx1024", code)
    assert result.returncode == 0, result.stderr
    assert "FUSED_ATTENTION_CPU_ISA: must be one of" in result.stdout
    assert "avx1024" in result.stdout


def test_the_kernel_refuses_an_instruction_set_that_is_not_there():
    call = dense_call(*[torch.ones(1, 1, 2, 4)] * 3, Band())
    results = (call.empty_out(), call.empty_lse())
    arguments = (*call[:11], *call[13:-1], "avx1024", True, *results)
    with pytest.raises(RuntimeError, match="instruction set 'avx1024' is not available"):
        torch.ops.fused_attention.cpu_forward(*arguments)


@pytest.mark.parametrize("value_dim", [8, 24])
def test_output_keeps_the_layout_of_the_query(value_dim, fused_backend):
    query = torch.randn(2, 7, 3, 8).transpose(1, 2)
    key, value = torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, value_dim)
    out = attention(query, key, value, backend=fused_backend)
    assert out.shape == (2, 3, 7, value_dim)
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_of_the_output_is_to_nearest_even(dtype, fused_backend):
    """With two equal scores the output is the mean of two values: fp32 arithmetic, one rounding.

    Values whose sum leaves fp32 are left out: weights are normalised after the sum. So are values
    near the subnormal ones: see test_subnormal_bf16_values_count_as_themselves_or_as_zero.
    """
    bits = torch.randint(-(1 << 15), 1 << 15, (2, 1, 512, 2, 64), dtype=torch.int16)
    value = bits.view(dtype)[:, 0].contiguous()
    one = torch.ones_like(value)
    value = torch.where(value.abs() > 1e37, one, value)
    if dtype == torch.bfloat16:
        value = torch.where(value.abs() < 1e-34, one, value)
    query, key = torch.zeros(2, 512, 1, 4, dtype=dtype), torch.zeros(2, 512, 2, 4, dtype=dtype)
    out = attention(query, key, value, backend=fused_backend)
    wide = value.float() * 0.5
    mean = (wide[:, :, :1] + wide[:, :, 1:]).to(dtype)
    torch.testing.assert_close(out, mean, rtol=0, atol=0, equal_nan=True)


def test_subnormal_bf16_values_count_as_themselves_or_as_zero(fused_backend):
    """VDPBF16PS and AMX take them as zero; nothing may become larger or NaN."""
    query, key = torch.randn(1, 1, 40, 16).bfloat16(), torch.randn(1, 1, 70, 16).bfloat16()
    value = torch.full((1, 1, 70, 16), 1e-39, dtype=torch.bfloat16)
    out = attention(query, key, value, backend=fused_backend).double()
    assert ((out >= 0) & (out <= 1.02e-39)).all()
    query = torch.full_like(query, 1e-39)
    out, lse = attention(query, key, key, return_lse=True, backend=fused_backend)
    exact = key.double().mean(2, keepdim=True).expand(out.shape)
    torch.testing.assert_close(out, exact.bfloat16(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(lse, torch.tensor(70.0).log().expand(lse.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rise", [0.3, 4.0, 90.0])
def test_scores_that_rise_from_step_to_step(rise, dtype, fused_backend):
    """m follows rising scores with slack: slow rises add up, a fast one comes at every step."""
    steps = torch.arange(6).repeat_interleave(64)
    key = torch.zeros(1, 1, 384, 16)
    key[..., 0] = rise * steps + torch.randn(384)
    query = torch.zeros(1, 1, 50, 16)
    query[..., 0] = torch.linspace(-1, 1, 50)
    value = torch.randn(1, 1, 384, 16)
    query, key, value = (x.to(dtype) for x in (query, key, value))
    out, lse = attention(query, key, value, scale=1.0, return_lse=True, backend=fused_backend)
    exact, exact_lse = attention_reference(
        query, key, value, scale=1.0, compute_dtype=torch.float64
    )
    rounding = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact.double(), rtol=0, atol=4 * rounding)
    error = (lse.double() - exact_lse).abs() / exact_lse.abs().clamp(min=1)
    assert error.max() < 1e-5


@pytest.mark.parametrize("scale", [-3.0, 1e-30, 1e-9, 3e8, 0.0])
def test_unusual_scales_with_bf16_and_sinks(scale, fused_backend):
    """Where the exponent takes the scale, m counts unscaled scores: that must not leave fp32."""
    query, key, value = (torch.randn(1, 2, 40, 16).bfloat16() for _ in range(3))
    query = (query / max(abs(scale), 1.0)).bfloat16()
    sinks = torch.tensor([0.5, -2.0])
    options = {"scale": scale, "sinks": sinks, "band": Band.sliding(30)}
    out, lse = attention(query, key, value, return_lse=True, backend=fused_backend, **options)
    exact, exact_lse = attention_reference(
        query, key, value, compute_dtype=torch.float64, **options
    )
    torch.testing.assert_close(out.double(), exact.double(), rtol=0, atol=0.03)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


def test_nan_in_a_query_reaches_its_own_row_only(fused_backend):
    query, key, value = (torch.randn(1, 2, 70, 16) for _ in range(3))
    query[0, 0, 5, 3] = torch.nan
    out, lse = attention(query, key, value, causal=True, return_lse=True, backend=fused_backend)
    assert out[0, 0, 5].isnan().all() and lse[0, 0, 5].isnan()
    out[0, 0, 5] = lse[0, 0, 5] = 0
    assert out.isfinite().all() and lse.isfinite().all()


def test_dead_rows_give_zero_whatever_comes_from_above(fused_backend):
    """The derivative of logaddexp(-inf, -inf) is NaN, and so may be what follows a dead row."""
    query, key, value = (torch.randn(1, 1, 9, 16, requires_grad=True) for _ in range(3))
    band = Band.causal(offset=-3)  # the first three queries see no key
    out, lse = attention(query, key, value, band=band, return_lse=True, backend=fused_backend)
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    clean = torch.autograd.grad((out, lse), (query, key, value), (grad_out, grad_lse), True)
    grad_out[:, :, :3] = grad_lse[:, :, :3] = torch.nan
    dirty = torch.autograd.grad((out, lse), (query, key, value), (grad_out, grad_lse))
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    assert (dirty[0][:, :, :3] == 0).all()


def test_huge_scores_stay_finite(fused_backend):
    query, key, value = (torch.randn(1, 1, 65, 16) for _ in range(3))
    query *= 1e15
    out, lse = attention(query, key, value, return_lse=True, backend=fused_backend)
    exact, _ = attention_reference(query, key, value, compute_dtype=torch.float64)
    assert lse.isfinite().all()
    torch.testing.assert_close(out, exact.float())


def test_offsets_beyond_32_bits(fused_backend):
    """Heads 2**31 elements apart: only the touched pages of the reservation become memory."""
    stride = 1 << 31
    reserved = torch.empty(2 * stride, dtype=torch.bfloat16)
    key = reserved.as_strided((1, 2, 5, 64), (2 * stride, stride, 64, 1))
    key.copy_(torch.randn(1, 2, 5, 64))
    dense = key.contiguous()
    out = attention(key, key, key, backend=fused_backend)
    torch.testing.assert_close(out, attention(dense, dense, dense, backend=fused_backend))


def test_backward_takes_a_globally_merged_output():
    """Two halves of the keys, each with the merged out and lse: the gradients of the whole."""
    query, key, value = (torch.randn(1, 2, 100, 32, dtype=torch.float64) for _ in range(3))
    whole = dense_call(query, key, value, Band())
    out, lse = cpu.forward(whole)
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    exact = cpu.backward(whole, grad_out, grad_lse, out, lse, False)

    halves = [slice(0, 37), slice(37, 100)]
    calls = [dense_call(query, key[:, :, s], value[:, :, s], Band()) for s in halves]
    merged = merge_attention(*cpu.forward(calls[0]), *cpu.forward(calls[1]))
    torch.testing.assert_close(merged, (out, lse))
    parts = [cpu.backward(call, grad_out, grad_lse, *merged, False) for call in calls]
    torch.testing.assert_close(parts[0].query + parts[1].query, exact.query)
    torch.testing.assert_close(torch.cat([p.key for p in parts], dim=2), exact.key)
    torch.testing.assert_close(torch.cat([p.value for p in parts], dim=2), exact.value)


def test_packed_rows_of_nobody_are_written(fused_backend, poisoned_allocations):
    query = torch.randn(9, 2, 8, requires_grad=True)
    ends = torch.tensor([0, 4, 6])
    out, lse = attention_varlen(query, query, query, ends, return_lse=True, backend=fused_backend)
    assert (out[6:] == 0).all() and (lse[:, 6:] == -torch.inf).all()
    (grad,) = torch.autograd.grad(out.sum(), query)
    assert (grad[6:] == 0).all() and grad.isfinite().all()


def test_head_dims_beyond_the_limit_are_refused_with_a_reason():
    wide = torch.ones(1, 1, 2, 513)
    with pytest.raises(NotImplementedError, match="head and value dims go up to 512, got 513"):
        attention(wide, wide, wide, backend="cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults by Linux's rules")
def test_sums_of_gradients_get_each_page_once():
    """A page that is read before it is written comes twice, and interrupts all threads."""
    import resource

    length, dim = 65536, 64
    q, k, v = torch.randn(3, 1, 1, length, dim).requires_grad_()
    out = attention(q, k, v, band=Band.sliding(64), backend="cpu")
    upstream = torch.ones_like(out)

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.autograd.grad(out, (q, k, v), upstream, retain_graph=True)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    pages_of_a_tensor = length * dim * 4 / resource.getpagesize()
    assert min(faults() for _ in range(3)) < 1.1 * 5 * pages_of_a_tensor  # dQ, dK, dV and two sums
