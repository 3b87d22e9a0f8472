"""The AMX tiles on any machine with AVX-512: the kernels as they are, the instructions modelled.

Where a processor has AMX, its tiers are in _ext.available_cpu_isas(), and every other test of the
CPU backend runs on them too.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from attention_case import AttentionCase
from attention_inputs import AttentionInputs
from backends.test_accuracy import LONG, assert_within_budget
from backends.test_cpu import (  # noqa: F401
    test_offsets_beyond_32_bits,
    test_scores_that_rise_from_step_to_step,
    test_subnormal_bf16_values_count_as_themselves_or_as_zero,
    test_unusual_scales_with_bf16_and_sinks,
)
from backends.test_cpu_threads import CASES as THREAD_CASES
from backends.test_cpu_threads import assert_bit_equal, forward_and_gradients
from hypothesis import HealthCheck, given, settings
from native.amx_model import REPLACED, operators
from native.build import ROOT
from places import Place
from shapes import CASES, attention_cases

from fused_attention import Band, _ext, attention

pytestmark = pytest.mark.skipif(
    "avx512" not in _ext.available_cpu_isas(), reason="the kernels need AVX-512 around the tiles"
)
ON_MODEL = Place("cpu", "cpu")  # use_model chooses the tier
TIERS = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}

# What is particular to tiles: 32 keys packed at a time, 32 queries, units of 64 or 128 keys, rows
# used in place or copied.
TILES = (
    AttentionCase("in_place", batch=1, len_q=70, len_k=192, head_dim=64),
    AttentionCase("copied", batch=1, len_q=70, len_k=192, head_dim=64, layout="swapped"),
    AttentionCase(
        "wide_units", batch=1, heads_kv=1, len_q=150, len_k=330, head_dim=128, band=Band.causal()
    ),
    AttentionCase(
        "wide_units_window",
        batch=1,
        len_q=300,
        head_dim=96,
        value_dim=128,
        band=Band.window(100, 20),
    ),
    AttentionCase("widest", batch=1, heads_q=1, len_q=40, len_k=140, head_dim=512),
    AttentionCase("narrow_long", batch=1, len_q=200, head_dim=16, band=Band.causal()),
    AttentionCase("value_of_3_tiles", batch=1, len_q=70, len_k=140, head_dim=48, value_dim=40),
    AttentionCase(
        "short_sequences",
        heads_q=4,
        heads_kv=2,
        head_dim=64,
        seq_lens_q=(16, 33, 64, 1, 128, 31, 32, 100),
        band=Band.causal(),
        trailing=1,
    ),
    AttentionCase("dropout_long", batch=1, len_q=70, len_k=300, head_dim=128, dropout_p=0.3),
    AttentionCase("bias_long", batch=1, len_q=70, len_k=200, head_dim=64, bias="1hqk"),
    AttentionCase("sinks_far_above", batch=1, len_q=40, sinks=True, scale=1e-3, magnitude=0.01),
)


def use_model(monkeypatch: pytest.MonkeyPatch, tier: str) -> None:
    for name in REPLACED:
        monkeypatch.setattr(torch.ops.fused_attention, name, getattr(operators(), name))
    monkeypatch.setattr(_ext, "cpu_isa", lambda: tier)


@pytest.fixture(params=TIERS, ids=str)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The dtype whose tier serves backend="cpu" during the test."""
    use_model(monkeypatch, TIERS[request.param])
    return request.param


@pytest.fixture
def fused_backend(monkeypatch: pytest.MonkeyPatch) -> str:
    """For the tests of test_cpu.py; this tier has bf16 and fp16 on tiles."""
    use_model(monkeypatch, "amx_fp16")
    return "cpu"


@pytest.mark.parametrize("case", (*CASES, *LONG, *TILES), ids=str)
def test_within_budget(case, dtype, poisoned_allocations):
    assert_within_budget(case.with_dtype(dtype), ON_MODEL)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=attention_cases())
def test_random_problems_within_budget(case, dtype, poisoned_allocations):
    assert_within_budget(case.with_dtype(dtype), ON_MODEL)


def growing_scores(dtype: torch.dtype, head_dim: int, steps: tuple[float, ...]) -> AttentionInputs:
    """Scores that rise by `steps` (in units of 1) from each 64 keys to the next."""
    case = AttentionCase("grows", 1, 2, None, 40, 64 * len(steps), head_dim, dtype=dtype, scale=1.0)
    inputs = case.make()
    with torch.no_grad():
        inputs.query[..., 0] = 1.0
        level = torch.tensor(steps).cumsum(0).repeat_interleave(64)
        inputs.query[..., 1:] *= 0.1
        inputs.key[..., 0] = level.to(dtype)
    return inputs


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    "steps", [(0.0, 9.0, 9.0, 9.0, 9.0), (0.0, 40.0, 100.0, 0.0, 60.0), (0.0, -90.0, 0.0, 91.0)]
)
def test_a_later_maximum_far_above_the_first(steps, head_dim, dtype):
    """The shift of a query is raised, and what was summed before is scaled down."""
    inputs = growing_scores(dtype, head_dim, steps)
    operands = (inputs.query, inputs.key, inputs.value)
    out, lse = attention(*operands, scale=1.0, return_lse=True, backend="cpu")
    inputs.assert_forward(out, lse)


def test_lse_is_exact_to_a_ten_thousandth(dtype):
    """Sums are of weights before rounding: the backward divides by them again."""
    inputs = AttentionCase("lse", 1, 2, None, 64, 1000, 64, dtype=dtype, magnitude=3.0).make()
    operands = (inputs.query, inputs.key, inputs.value)
    _, lse = attention(*operands, return_lse=True, backend="cpu")
    exact = inputs.exact[1]
    error = (lse.double() - exact).abs() / exact.abs().clamp(min=1.0)
    assert error.max() < 1e-6


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_huge_scores_select_one_key(scale, dtype):
    """Scores that are multiples of large powers of 2 in fp32: exponents must stay consistent."""
    query, key, value = (torch.randn(1, 2, 70, 64).to(dtype) for _ in range(3))
    query *= 1e12 if dtype == torch.bfloat16 else 1e3
    scale *= 1.0 if dtype == torch.bfloat16 else 1e9
    leaves = [x.requires_grad_() for x in (query, key, value)]
    out, lse = attention(*leaves, scale=scale, return_lse=True, backend="cpu")
    scores = scale * (query.double() @ key.double().mT)
    assert (lse - scores.amax(-1)).abs().max() <= scores.abs().max() * 2.0**-22
    chosen = value.gather(2, scores.argmax(-1, keepdim=True).expand(-1, -1, -1, 64))
    torch.testing.assert_close(out, chosen)
    grads = torch.autograd.grad(out.float().sum(), leaves)
    finite = grads if dtype == torch.bfloat16 else grads[2:]  # scale * query leaves fp16
    assert all(x.isfinite().all() for x in finite)


@pytest.mark.parametrize("tier", TIERS.values())
def test_tiers_serve_the_other_dtypes_as_avx512_does(tier, monkeypatch):
    inputs = AttentionCase("other", batch=1, len_q=70, head_dim=32).make()
    operands = (inputs.query, inputs.key, inputs.value)
    monkeypatch.setattr(_ext, "cpu_isa", lambda: "avx512")
    expected = attention(*operands, backend="cpu")
    use_model(monkeypatch, tier)
    assert torch.equal(attention(*operands, backend="cpu"), expected)


def test_nan_in_a_query_reaches_its_own_row_only(dtype):
    query, key, value = (torch.randn(1, 2, 70, 16).to(dtype) for _ in range(3))
    query[0, 0, 5, 3] = query[0, 1, 69, 0] = torch.nan
    out, lse = attention(query, key, value, causal=True, return_lse=True, backend="cpu")
    for row in ((0, 0, 5), (0, 1, 69)):
        assert out[row].isnan().all() and lse[row].isnan()
        out[row] = lse[row] = 0
    assert out.isfinite().all() and lse.isfinite().all()


def test_dead_rows_give_zero_whatever_comes_from_above(dtype):
    leaves = [torch.randn(1, 1, 40, 16, dtype=dtype, requires_grad=True) for _ in range(3)]
    band = Band.causal(offset=-3)  # the first three queries see no key
    out, lse = attention(*leaves, band=band, return_lse=True, backend="cpu")
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    clean = torch.autograd.grad((out, lse), leaves, (grad_out, grad_lse), retain_graph=True)
    grad_out[:, :, :3] = grad_lse[:, :, :3] = torch.nan
    dirty = torch.autograd.grad((out, lse), leaves, (grad_out, grad_lse))
    assert_bit_equal(list(dirty), list(clean))
    assert (dirty[0][:, :, :3] == 0).all()


AT_THE_END_OF_MEMORY = """
import ctypes, mmap, sys
import torch
from native.amx_model import REPLACED, operators
from fused_attention import _ext, attention
_ext.cpu_isa()
for name in REPLACED:
    setattr(torch.ops.fused_attention, name, getattr(operators(), name))
_ext.cpu_isa = lambda: "amx_bf16"
PAGE, NONE = mmap.PAGESIZE, 0
protect = ctypes.CDLL(None).mprotect

def at_the_end(rows, dim):
    # The last page may not be touched; the tensor ends right before it.
    memory = mmap.mmap(-1, 9 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert protect(ctypes.c_void_p(start + 8 * PAGE), ctypes.c_size_t(PAGE), NONE) == 0
    values = torch.frombuffer(memory, dtype=torch.bfloat16)[: 4 * PAGE][-rows * dim :]
    return values.normal_().view(1, 1, rows, dim).requires_grad_()

for rows, dim in ((40, 64), (33, 32), (70, 128), (45, 20)):
    leaves = [at_the_end(rows, dim) for _ in range(3)]
    out = attention(*leaves, causal=True, backend="cpu")
    torch.autograd.grad(out, leaves, at_the_end(rows, dim).detach())
    print("ok")
"""


def test_nothing_beyond_the_tensors_is_read():
    operators()
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("tests", "python"))
    result = subprocess.run(
        [sys.executable, "-c", AT_THE_END_OF_MEMORY],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.stdout.split().count("ok") == 4, result.stderr


@pytest.mark.parametrize("case", THREAD_CASES, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(case, dtype):
    """One thread takes whole heads, several share blocks of queries and the packed keys."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = forward_and_gradients(case.with_dtype(dtype))
        for threads in (2, 5):
            torch.set_num_threads(threads)
            for _ in range(3):
                assert_bit_equal(forward_and_gradients(case.with_dtype(dtype)), alone)
    finally:
        torch.set_num_threads(before)
