"""A plain call goes one short way: the same bits as on the long way, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fused_attention import Band, _ext, attention
from fused_attention.backends import cpu
from fused_attention.plain_calls import run_plain
from fused_attention.prepare import prepare, run

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PLAIN = (1.5, 0.0, 0.0)  # scale, softcap, dropout_p
FULL = (False, None, None)  # causal, window, band
native = pytest.mark.skipif(_ext.cpu_unavailable() is not None, reason="needs the CPU library")


def operands(batch=2, heads=4, heads_kv=2, len_q=19, len_k=33, dim=24, dtype=torch.float32):
    shapes = ((batch, heads, len_q, dim), *[(batch, heads_kv, len_k, dim)] * 2)
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def on_the_long_way(tensors: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, Tensor]:
    problem, call = prepare(*tensors, **options)
    return run(problem, call, "cpu", None, 0)


def assert_same(found: Any, expected: Any) -> None:
    assert found is not None, "went the long way"
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "mask",
    [FULL, (True, None, None), (False, (5, None), None), (True, (5, 0), None)]
    + [(False, None, Band(3, 2, 40)), (False, None, Band.causal(offset=0))],
    ids=str,
)
def test_the_same_results_for_every_mask(dtype: torch.dtype, mask: Any) -> None:
    tensors = operands(dtype=dtype)
    causal, window, band = mask
    for scale in (None, 0.25, -2.0):
        expected = on_the_long_way(tensors, causal=causal, window=window, band=band, scale=scale)
        assert_same(run_plain(*tensors, mask, (scale, 0.0, 0.0), None), expected)


@native
@pytest.mark.parametrize(
    "sizes",
    [{"batch": 0}, {"len_q": 0}, {"len_k": 0}, {"len_q": 1}, {"dim": 1}, {"dim": 512}]
    + [{"heads_kv": 1}, {"heads_kv": 4}, {"len_q": 70}],
    ids=str,
)
def test_the_same_results_for_every_size(sizes: dict[str, int]) -> None:
    tensors = operands(**sizes)
    assert_same(run_plain(*tensors, FULL, (None, 0.0, 0.0), "cpu"), on_the_long_way(tensors))


@native
def test_the_same_layout() -> None:
    tensors = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in operands())
    assert_same(run_plain(*tensors, FULL, (None, 0.0, 0.0), None), on_the_long_way(tensors))


@native
def test_attention_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("the long way")

    monkeypatch.setattr("fused_attention.functional.prepare", never)
    tensors = operands()
    out, lse = attention(*tensors, causal=True, return_lse=True)
    assert out.shape == tensors[0].shape and lse.shape == out.shape[:-1]
    assert torch.equal(attention(*tensors, causal=True), out)
    with pytest.raises(AssertionError, match="the long way"):
        attention(*tensors, softcap=1.0)


def trained(tensors: Any, which: Any = (True, True, True)) -> list[Tensor]:
    return [x.clone().requires_grad_(wanted) for x, wanted in zip(tensors, which, strict=True)]


def gradients_on_both_ways(
    tensors: Any, wanted: Any = (True, True, True), mask: Any = FULL, scale: float | None = None
) -> tuple[list[Any], list[Any]]:
    """Of a function of out and lse whose gradient by out is one expanded number."""
    causal, window, band = mask
    found = []
    for short in (True, False):
        operands = trained(tensors, wanted)
        if short:
            results = run_plain(*operands, mask, (scale, 0.0, 0.0), None)
            assert results is not None, "went the long way"
        else:
            results = on_the_long_way(
                tuple(operands), causal=causal, window=window, band=band, scale=scale
            )
        out, lse = results
        (out.sum() + (lse * torch.linspace(-1, 1, lse.shape[-1]).to(lse.dtype)).sum()).backward()
        found.append([out.detach(), lse.detach(), *(x.grad for x in operands)])
    return found[0], found[1]


def assert_same_or_none(found: list[Any], expected: list[Any]) -> None:
    assert [x is None for x in found] == [x is None for x in expected]
    assert_same([x for x in found if x is not None], [x for x in expected if x is not None])


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [{}, {"len_q": 1}, {"len_q": 70, "dim": 8}], ids=str)
def test_the_same_gradients(dtype: torch.dtype, sizes: dict[str, int]) -> None:
    tensors = operands(dtype=dtype, **sizes)
    for mask, scale in (
        (FULL, None),
        ((True, (5, 0), None), 0.25),
        ((False, None, Band(3, 2)), -2),
    ):
        numbers = None if scale is None else float(scale)
        assert_same_or_none(*gradients_on_both_ways(tensors, mask=mask, scale=numbers))


@native
@pytest.mark.parametrize("index", range(3))
def test_gradients_only_of_what_wants_them(index: int) -> None:
    wanted = [i == index for i in range(3)]
    found, expected = gradients_on_both_ways(operands(), wanted)
    assert [x is not None for x in found[2:]] == wanted
    assert_same_or_none(found, expected)


@native
@pytest.mark.parametrize("sizes", [{}, {"len_q": 0}, {"len_k": 0}, {"dim": 5}], ids=str)
def test_no_result_is_left_unwritten(sizes: dict[str, int]) -> None:
    """torch fills what it allocates with NaN, also for C++."""
    band = Band(0, 0, offset=-5)  # the first rows see no key
    torch.use_deterministic_algorithms(True)
    try:
        found, expected = gradients_on_both_ways(operands(**sizes), mask=(False, None, band))
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(x.isnan().any() for x in found)
    assert_same_or_none(found, expected)


@native
def test_gradients_keep_the_layout() -> None:
    tensors = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in operands())
    assert_same_or_none(*gradients_on_both_ways(tensors))


@native
def test_gradients_of_lse_alone_and_of_rows_that_see_nothing() -> None:
    band, tensors = Band(0, 0, offset=-5), trained(operands())
    grads = []
    for results in (
        run_plain(*tensors, (False, None, band), PLAIN, None),
        on_the_long_way(tuple(tensors), band=band, scale=PLAIN[0]),
    ):
        assert results is not None and (results[1] == -torch.inf).any()
        seen = results[1][torch.isfinite(results[1])]
        grads.append(torch.autograd.grad(seen.sum(), tensors))
    assert_same(*grads)


@native
def test_second_derivatives() -> None:
    tensors = trained(operands(len_q=3, len_k=4, dim=5, dtype=torch.float64))
    assert run_plain(*tensors, FULL, PLAIN, None) is not None

    def short(*operands: Tensor) -> Any:
        return run_plain(*operands, (True, None, None), PLAIN, None)

    assert torch.autograd.gradgradcheck(short, tensors, atol=1e-6)


@native
def test_no_grad_saves_nothing() -> None:
    tensors = trained(operands())
    with torch.no_grad():
        out, lse = run_plain(*tensors, FULL, PLAIN, None)
    assert not out.requires_grad and not lse.requires_grad


@native
def test_who_watches_the_gradients_sees_the_general_operator() -> None:
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    tensors = trained(operands())
    out, _ = run_plain(*tensors, FULL, PLAIN, None)
    with Recorder():
        grads = torch.autograd.grad(out.sum(), tensors)
    assert "fused_attention.backward.default" in seen
    out, _ = run_plain(*tensors, FULL, PLAIN, None)
    assert_same(torch.autograd.grad(out.sum(), tensors), grads)


def refused(*tensors: Any, mask: Any = FULL, numbers: Any = PLAIN, backend: Any = None) -> bool:
    return run_plain(*tensors, mask, numbers, backend) is None


@native
def test_whatever_is_not_plain_goes_the_long_way() -> None:
    query, key, value = operands()
    assert not refused(query, key, value)
    for numbers in (
        (1, 0.0, 0.0),
        (1.0, 2.0, 0.0),
        (1.0, 0.0, 0.5),
        (1.0, 0, 0.0),
        ("1", 0.0, 0.0),
    ):
        assert refused(query, key, value, numbers=numbers)
    assert refused(query, key, value, backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        assert refused(query, key, value)
    with torch.device("cpu"):
        assert refused(query, key, value)


@native
def test_operands_that_do_not_fit_go_the_long_way_where_they_are_told() -> None:
    query, key, value = operands()
    wrong: list[tuple[Any, ...]] = [
        (query, key, None),
        (query, key.numpy(), value),
        (query[0], key, value),
        (query, key[:1], value),
        (query, key[:, :, 1:], value),
        (query, key[..., 1:], value),
        (query, key, value[..., 1:]),
        (query[:, :3], key, value),
        (query[:, :0], key, value),
        (query, key[:, :1], value),
        (query, key.double(), value),
        (query.int(), key.int(), value.int()),
        (query.mT.contiguous().mT, key, value),
        (query, key, value.mT.contiguous().mT),
        (query, key.to("meta"), value),
        (query.to_sparse(), key, value),
        tuple(x.repeat(1, 1, 1, 22) for x in (query, key, value)),
    ]
    for tensors in wrong:
        assert refused(*tensors), tensors
        if all(isinstance(x, Tensor) and x.is_floating_point() for x in tensors):
            assert refused(*[x.detach().requires_grad_() for x in tensors]), tensors
    for scale in (float("nan"), float("inf")):
        assert refused(query, key, value, numbers=(scale, 0.0, 0.0))


def test_without_the_library_everything_goes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu._ext, "cpu_unavailable", lambda: "has not been built")
    assert refused(*operands())
