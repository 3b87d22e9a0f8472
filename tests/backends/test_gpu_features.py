"""What only a GPU can show: streams, graphs, compiled code, huge tensors. Collected only on one.

That the numbers are right is shown by test_accuracy.py, which runs on GPUs too.
"""

from __future__ import annotations

import pytest
import torch
from attention_case import AttentionCase
from places import GPU_PLACES, matrix
from shapes import CASES, DTYPES
from torch import Tensor

from fused_attention import Band, attention, attention_varlen, explain
from fused_attention.reference import attention_reference

pytestmark = pytest.mark.gpu
HALF = torch.bfloat16
MANY_CASES = len(CASES) // 2


def operands(*shape: int, heads_kv: int | None = None, grad: bool = False) -> list[Tensor]:
    """Query, key and value [B, H, L, D] on the GPU."""
    batch, heads, length, dim = shape
    kv = (batch, heads if heads_kv is None else heads_kv, length, dim)
    return [
        torch.randn(size, device="cuda", dtype=HALF, requires_grad=grad) for size in (shape, kv, kv)
    ]


def assert_bit_equal(actual, expected) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


def forward_and_backward(tensors: list[Tensor], backend: str, **options) -> list[Tensor]:
    out, lse = attention(*tensors, return_lse=True, backend=backend, **options)
    grads = torch.autograd.grad((out, lse), tensors, (torch.ones_like(out), torch.ones_like(lse)))
    return [out.detach(), lse.detach(), *grads]


def needs_memory(gib: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gib * 2**30:
        pytest.skip(f"needs {gib:g} GiB of GPU memory, {free / 2**30:.1f} are free")


def test_the_gpu_has_backends_and_they_have_cases():
    """Neither a backend that fell away nor one that refuses everything goes unnoticed."""
    assert GPU_PLACES
    for place in GPU_PLACES:
        params = matrix(CASES, DTYPES, [place])
        assert len({str(param.values[1]) for param in params}) >= MANY_CASES, place


def test_tensors_on_the_gpu_get_a_gpu_kernel_and_the_profiler_shows_it():
    tensors = operands(2, 4, 128, 64)
    assert explain(*tensors, causal=True).chosen in {place.backend for place in GPU_PLACES}
    with torch.profiler.profile() as profile:
        attention(*tensors, causal=True)
    assert any(event.key.startswith("fused_attention") for event in profile.key_averages())


REPEATED = (
    AttentionCase("causal", 2, 8, 2, 700, head_dim=128, band=Band.causal()),
    AttentionCase("packed", heads_q=4, seq_lens_q=(300, 0, 3, 170), head_dim=64, trailing=3),
    AttentionCase("dropout", len_q=333, head_dim=64, dropout_p=0.3),
)


@pytest.mark.parametrize(("place", "case"), matrix(REPEATED), indirect=["place"])
def test_repeated_calls_are_bit_equal(place, case):
    inputs = case.make(0, "cuda")
    leaves = list(inputs.require_gradients().values())
    function = attention_varlen if case.packed else attention
    upstream = inputs.random_output_gradients()

    def call() -> list[Tensor]:
        options = inputs.options | {"deterministic": True, "backend": place.backend}
        results = function(inputs.query, inputs.key, inputs.value, return_lse=True, **options)
        return [*results, *torch.autograd.grad(results, leaves, upstream)]

    first = call()
    for _ in range(20):
        assert_bit_equal(call(), first)


def test_nothing_waits_for_the_gpu(gpu_backend):
    tensors = operands(2, 4, 200, 64, grad=True)
    lengths = torch.tensor([200, 7], device="cuda", dtype=torch.int32)
    forward_and_backward(tensors, gpu_backend, kv_lengths=lengths)  # compiles and loads
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward_and_backward(tensors, gpu_backend, kv_lengths=lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_kernels_run_on_the_current_stream(gpu_backend):
    """On a stream that is kept busy before the query is written there."""
    tensors = operands(2, 4, 300, 64, grad=True)
    expected = forward_and_backward(tensors, gpu_backend, causal=True)
    late = [torch.zeros_like(x, requires_grad=True) for x in tensors]
    busy = torch.randn(4096, 4096, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):
            torch.mm(busy, busy)
        with torch.no_grad():
            for tensor, source in zip(late, tensors, strict=True):
                tensor.copy_(source)
        results = forward_and_backward(late, gpu_backend, causal=True)
    stream.synchronize()
    assert_bit_equal(results, expected)


def test_forward_and_backward_in_a_cuda_graph(gpu_backend):
    tensors = operands(2, 4, 260, 64, heads_kv=2, grad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what graphs ask for: a first run elsewhere
        forward_and_backward(tensors, gpu_backend, causal=True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward_and_backward(tensors, gpu_backend, causal=True)
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            for tensor in tensors:
                tensor.normal_()
        graph.replay()
        torch.cuda.synchronize()
        assert_bit_equal(captured, forward_and_backward(tensors, gpu_backend, causal=True))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_gives_the_same(gpu_backend, dynamic):
    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = attention(query * 2, key, value, causal=True, backend=gpu_backend)
        return out.transpose(1, 2).flatten(2).float().sin()

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for length in (130, 201):
        tensors = operands(2, 4, length, 64, grad=True)
        expected = function(*tensors)
        found = compiled(*tensors)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        expected_grads = torch.autograd.grad(expected.sum(), tensors)
        found_grads = torch.autograd.grad(found.sum(), tensors)
        torch.testing.assert_close(found_grads, expected_grads)


def test_autocast_chooses_a_gpu_kernel():
    tensors = [x.float() for x in operands(1, 2, 100, 64)]
    with torch.autocast("cuda", dtype=HALF):
        out = attention(*tensors, causal=True)
    expected = attention(*(x.to(HALF) for x in tensors), causal=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_heads_further_apart_than_32_bits_reach(gpu_backend):
    needs_memory(9.0)
    stride = 1 << 31
    reserved = torch.empty(stride + 70 * 64, device="cuda", dtype=HALF)
    key = reserved.as_strided((1, 2, 70, 64), (stride, stride, 64, 1))
    key.copy_(torch.randn(1, 2, 70, 64))
    dense = key.contiguous()
    far = attention(key, key, key, causal=True, backend=gpu_backend)
    near = attention(dense, dense, dense, causal=True, backend=gpu_backend)
    assert_bit_equal([far], [near])


def test_more_elements_than_32_bits_count(gpu_backend):
    needs_memory(10.0)
    length = 1 << 21
    query = torch.randn(1, 16, length + 64, 64, device="cuda", dtype=HALF)
    key, value = (torch.randn(1, 16, 40, 64, device="cuda", dtype=HALF) for _ in range(2))
    assert query.numel() > 1 << 31
    out = attention(query, key, value, backend=gpu_backend)
    last = attention(query[:, :, -64:].clone(), key, value, backend=gpu_backend)
    assert_bit_equal([out[:, :, -64:]], [last])


def test_memory_grows_with_the_length_and_not_with_its_square(gpu_backend):
    tensors = operands(1, 4, 16384, 64, grad=True)
    size = tensors[0].numel() * 2
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    forward_and_backward(tensors, gpu_backend, causal=True)
    # out, grad_out and three gradients; one score matrix alone would be 256 times the size
    assert torch.cuda.max_memory_allocated() - before < 16 * size


def test_nan_in_a_query_reaches_its_own_row_only(gpu_backend):
    query, key, value = operands(1, 2, 200, 64)
    query[0, 0, 5, 3] = torch.nan
    out, lse = attention(query, key, value, causal=True, return_lse=True, backend=gpu_backend)
    assert out[0, 0, 5].isnan().all() and lse[0, 0, 5].isnan()
    out[0, 0, 5] = lse[0, 0, 5] = 0
    assert out.isfinite().all() and lse.isfinite().all()


def test_dead_rows_give_zero_whatever_comes_from_above(gpu_backend):
    tensors = operands(1, 1, 90, 64, grad=True)
    band = Band.causal(offset=-30)  # the first thirty queries see no key
    out, lse = attention(*tensors, band=band, return_lse=True, backend=gpu_backend)
    assert (out[:, :, :30] == 0).all() and (lse[:, :, :30] == -torch.inf).all()
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    clean = torch.autograd.grad((out, lse), tensors, (grad_out, grad_lse), retain_graph=True)
    grad_out[:, :, :30] = grad_lse[:, :, :30] = torch.nan
    dirty = torch.autograd.grad((out, lse), tensors, (grad_out, grad_lse))
    assert_bit_equal(dirty, clean)


def test_huge_scores_stay_finite(gpu_backend):
    query, key, value = operands(1, 2, 130, 64)
    query *= 1e15
    out, lse = attention(query, key, value, return_lse=True, backend=gpu_backend)
    exact, _ = attention_reference(query, key, value, compute_dtype=torch.float64)
    assert lse.isfinite().all()
    torch.testing.assert_close(out, exact.to(HALF))


def test_the_last_gpu_of_the_machine(gpu_backend):
    """Where there are several it is not the current one."""
    tensors = operands(1, 2, 100, 64)
    there = [x.to(f"cuda:{torch.cuda.device_count() - 1}") for x in tensors]
    out = attention(*there, causal=True, backend=gpu_backend)
    assert out.device == there[0].device
    expected = attention(*tensors, causal=True, backend=gpu_backend)
    torch.testing.assert_close(out.cpu(), expected.cpu())
