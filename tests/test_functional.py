"""attention and attention_varlen hand every argument on, with the defaults that they promise."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from places import CPU_BACKENDS
from shapes import CASES, AttentionCase
from torch import Tensor

import fused_attention
from fused_attention import Band, attention, attention_varlen, explain
from fused_attention.backends import reference
from fused_attention.problem import Problem
from fused_attention.reference import attention_backward_reference, attention_reference

every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def operands(
    len_q: int = 5, len_k: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = AttentionCase("", len_q=len_q, len_k=len_k, dtype=dtype).make()
    return inputs.query, inputs.key, inputs.value


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_argument_arrives(case: AttentionCase) -> None:
    """On the reference backend the public function is the formula, to the bit."""
    inputs = case.make()
    variables = inputs.require_gradients()
    attend = attention_varlen if case.packed else attention
    operands = (inputs.query, inputs.key, inputs.value)
    out, lse = attend(*operands, **inputs.options, return_lse=True, backend="reference")
    exact = attention_reference(*operands, **inputs.reference_options)
    torch.testing.assert_close((out, lse), exact, rtol=0, atol=0, equal_nan=True)
    grads = (torch.randn_like(out), torch.randn_like(lse))
    found = torch.autograd.grad((out, lse), list(variables.values()), grads)
    with torch.no_grad():
        formula = attention_backward_reference(
            *grads, *operands, out, lse, **inputs.reference_options
        )
    for name, grad in zip(variables, found, strict=True):
        exact_grad = getattr(formula, name)
        torch.testing.assert_close(grad, exact_grad, rtol=0, atol=0, equal_nan=True)


BANDS: dict[str, tuple[dict[str, Any], Band]] = {
    "nothing": ({}, Band.full()),
    "causal": ({"causal": True}, Band.causal()),
    "window": ({"window": (2, 1)}, Band.window(2, 1)),
    "window open to the left": ({"window": (None, 1)}, Band.window(None, 1)),
    "window open to the right": ({"window": (2, None)}, Band.window(2, None)),
    "causal window": ({"causal": True, "window": (2, None)}, Band.window(2, 0)),
    "causal window with right": ({"causal": True, "window": (2, 0)}, Band.window(2, 0)),
    "a list": ({"window": [1, 0]}, Band.sliding(2)),
    "top left": ({"band": Band.causal(0)}, Band.causal(0)),
}


@pytest.mark.parametrize("name", BANDS)
def test_masks_by_any_name(name: str) -> None:
    options, band = BANDS[name]
    query, key, value = operands()
    exact = attention_reference(query, key, value, band=band)[0]
    torch.testing.assert_close(attention(query, key, value, **options), exact)
    ends = torch.tensor([0, 5]), torch.tensor([0, 7])
    packed = (x[0].transpose(0, 1) for x in (query, key, value))
    out = attention_varlen(*packed, *ends, **options)
    torch.testing.assert_close(out.transpose(0, 1), exact[0])


@every_backend
def test_is_scaled_dot_product_attention(backend: str) -> None:
    query, key, value = operands(len_q=6, len_k=6)
    mask = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    for causal, bias in ((False, None), (True, None), (False, mask)):
        ours = attention(query, key, value, causal=causal, bias=bias, backend=backend)
        torchs = F.scaled_dot_product_attention(
            query, key, value, mask if bias is mask else None, is_causal=causal
        )
        torch.testing.assert_close(ours, torchs)


@every_backend
def test_each_packed_sequence_has_its_own_offset(backend: str) -> None:
    """Bottom right in every sequence, for the mask and for ALiBi's distances."""
    query, key, value = (torch.randn(n, 2, 4, dtype=torch.float64) for n in (7, 9, 9))
    ends_q, ends_k = torch.tensor([0, 2, 3, 7]), torch.tensor([0, 5, 6, 9])
    slopes = torch.tensor([0.5, 1.0])
    for options in ({"causal": True}, {"alibi_slopes": slopes}, {"window": (1, 0)}):
        out, lse = attention_varlen(
            query, key, value, ends_q, ends_k, return_lse=True, backend=backend, **options
        )
        for q0, q1, k0, k1 in ((0, 2, 0, 5), (2, 3, 5, 6), (3, 7, 6, 9)):
            one = (query[q0:q1], key[k0:k1], value[k0:k1])
            alone = attention(
                *(x.transpose(0, 1)[None] for x in one),
                return_lse=True,
                backend=backend,
                **options,
            )
            torch.testing.assert_close(out[q0:q1].transpose(0, 1), alone[0][0])
            torch.testing.assert_close(lse[:, q0:q1], alone[1][0])


def test_packed_self_attention_needs_one_list_of_ends() -> None:
    query = torch.randn(7, 2, 4)
    ends = torch.tensor([0, 3, 7])
    short = attention_varlen(query, query, query, ends, causal=True)
    full = attention_varlen(query, query, query, ends, ends.clone(), causal=True)
    bounded = attention_varlen(query, query, query, ends, max_seqlen_q=4, causal=True)
    torch.testing.assert_close(short, full)
    torch.testing.assert_close(short, bounded)
    problem = explain(query, query, query, ends, max_seqlen_q=4).problem
    assert (problem.len_q, problem.len_k) == (4, 4)


@every_backend
@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8])
def test_integers_of_any_width_and_stride(dtype: torch.dtype, backend: str) -> None:
    query, key, value = operands()
    numbers = torch.tensor([[3, 0], [7, 2]])
    expected = attention(
        query,
        key,
        value,
        causal=True,
        kv_lengths=numbers[:, 0].int().contiguous(),
        band_offsets=numbers[:, 1].int().contiguous(),
        backend=backend,
    )
    lengths, offsets = numbers.to(dtype).unbind(dim=1)  # strided views
    options = {"kv_lengths": lengths, "band_offsets": offsets, "backend": backend}
    assert torch.equal(attention(query, key, value, causal=True, **options), expected)


@every_backend
def test_slopes_and_sinks_of_any_dtype_and_stride(backend: str) -> None:
    query, key, value = operands(dtype=torch.float32)
    numbers = torch.tensor([[0.5, 0.25], [1.0, -2.0]])
    slopes, sinks = numbers.unbind(dim=1)
    expected = attention(
        query, key, value, alibi_slopes=slopes.clone(), sinks=sinks.clone(), backend=backend
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        few, more = numbers.to(dtype).unbind(dim=1)
        out = attention(query, key, value, alibi_slopes=few, sinks=more, backend=backend)
        assert torch.equal(out, expected)


def test_gradient_of_sinks_has_their_dtype() -> None:
    query, key, value = operands(dtype=torch.bfloat16)
    sinks = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    attention(query, key, value, sinks=sinks).sum().backward()
    assert sinks.grad is not None and sinks.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtypes", ["ffff", "dddd", "hhhh", "bbbf", "fhbf"])
def test_autocast_is_that_of_scaled_dot_product_attention(dtypes: str, lower: torch.dtype) -> None:
    known = {"f": torch.float32, "d": torch.float64, "h": torch.float16, "b": torch.bfloat16}
    given = [torch.randn(1, 2, 4, 4).to(known[letter]) for letter in dtypes]
    with torch.autocast("cpu", dtype=lower):
        expected = F.scaled_dot_product_attention(*given).dtype
        out, lse = attention(*given[:3], bias=given[3], return_lse=True)
        packed = attention_varlen(*(x[0] for x in given[:3]), torch.tensor([0, 2]))
    assert out.dtype == packed.dtype == expected
    assert lse.dtype == (torch.float64 if expected == torch.float64 else torch.float32)


def test_autocast_leaves_fp64_alone_and_casts_the_bias() -> None:
    x = torch.randn(1, 2, 4, 4)
    with torch.autocast("cpu"):
        assert explain(x, x, x, bias=x).problem.bias_dtype == torch.bfloat16
    with torch.autocast("cpu"), pytest.raises(TypeError, match="query's dtype torch.bfloat16"):
        attention(x, x.double(), x)


def test_autocast_does_not_reach_into_the_operators() -> None:
    """The fp32 products of a bf16 problem stay fp32, in forward, backward and double backward."""
    x = torch.randn(1, 2, 6, 8, requires_grad=True)

    def second_order() -> tuple[Tensor, ...]:
        low = x.bfloat16()
        out, lse = attention(low, low, low, return_lse=True, backend="reference")
        (first,) = torch.autograd.grad(lse.sum() + out.float().sum(), x, create_graph=True)
        return out, lse, first, *torch.autograd.grad(first.square().sum(), x)

    plain = second_order()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = second_order()
    assert all(map(torch.equal, plain, cast))


@every_backend
def test_dropout_is_seeded(backend: str) -> None:
    x = torch.randn(1, 2, 32, 8)

    def dropped(**options: Any) -> Tensor:
        return attention(x, x, x, dropout_p=0.5, backend=backend, **options)

    fixed = dropped(dropout_seed=5)
    assert torch.equal(dropped(dropout_seed=5), fixed)
    assert not torch.equal(dropped(dropout_seed=6), fixed)
    assert not torch.equal(dropped(dropout_seed=5, dropout_offset=1), fixed)
    assert torch.equal(dropped(dropout_seed=torch.tensor([5, 0])), fixed)
    assert not torch.equal(dropped(), dropped())
    torch.manual_seed(0)
    drawn = dropped()
    torch.manual_seed(0)
    assert torch.equal(dropped(), drawn)
    torch.manual_seed(0)
    attention(x, x, x, backend=backend)  # without dropout nothing is drawn
    assert torch.equal(dropped(), drawn)


def test_deterministic_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def why_not(problem: Problem) -> list[str]:
        return ["varies from run to run"] if problem.deterministic else []

    monkeypatch.setattr(reference, "why_not", why_not)
    x, ends = torch.randn(1, 1, 4, 4), torch.tensor([0, 1])
    for call in (
        lambda **options: attention(x, x, x, **options),
        lambda **options: attention_varlen(x[0], x[0], x[0], ends, **options),
    ):
        call(backend="reference")
        with pytest.raises(NotImplementedError, match="varies from run to run"):
            call(backend="reference", deterministic=True)


def test_meta_tensors_give_shapes() -> None:
    query = torch.empty(2, 8, 1 << 20, 64, device="meta", dtype=torch.bfloat16)
    key = torch.empty(2, 2, 1 << 20, 64, device="meta", dtype=torch.bfloat16)
    out, lse = attention(query, key, key, causal=True, return_lse=True)
    assert out.shape == query.shape and out.dtype == torch.bfloat16 and out.is_meta
    assert lse.shape == query.shape[:-1] and lse.dtype == torch.float32


@every_backend
def test_profiler_shows_every_kernel_call(backend: str) -> None:
    x = torch.randn(1, 2, 16, 8, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attention(x, x, x, backend=backend).sum().backward()
        with torch.no_grad():
            attention(x, x, x, backend=backend)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["fused_attention::forward"] == 2
    assert calls["fused_attention::backward"] == 1


def test_public_names() -> None:
    public = {"Band", "attention", "attention_varlen", "backends", "explain", "merge_attention"}
    public |= {"additive_attention", "attention_with_kv_cache", "convert", "local_attention"}
    public |= {"AttentionMaps", "attention_maps", "sdpa"}
    public |= {"additive_attention_maps", "local_attention_maps"}
    assert set(fused_attention.__all__) == public | {"__version__"}
    assert all(hasattr(fused_attention, name) for name in fused_attention.__all__)
    assert reference.NAME == "reference"  # of the package that has the function's name


def test_import_is_light() -> None:
    """No compiler, no Triton, no CUDA context, and little time beyond torch's own."""
    program = """
import sys, time, torch
before = set(sys.modules)
start = time.perf_counter()
import fused_attention
seconds = time.perf_counter() - start
new = set(sys.modules) - before
heavy = [n for n in new if n.split(".")[0] in ("triton", "sympy", "numpy") or "_dynamo" in n]
assert not heavy, heavy
assert not torch.cuda.is_initialized()
assert "fused_attention" in new
print(seconds)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 0.3
