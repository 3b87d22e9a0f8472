"""A plain call of inference goes one short way: the same bits as on the long way, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fused_attention import Band, _ext, attention
from fused_attention.backends import cpu
from fused_attention.prepare import prepare, run, run_plain

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


def refused(*tensors: Any, mask: Any = FULL, numbers: Any = PLAIN, backend: Any = None) -> bool:
    return run_plain(*tensors, mask, numbers, backend) is None


@native
def test_whatever_is_not_plain_goes_the_long_way() -> None:
    query, key, value = operands()
    assert not refused(query, key, value)
    for index in range(3):
        trained = [x.clone().requires_grad_(i == index) for i, x in enumerate((query, key, value))]
        assert refused(*trained)
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
    for scale in (float("nan"), float("inf")):
        assert refused(query, key, value, numbers=(scale, 0.0, 0.0))


def test_without_the_library_everything_goes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu._ext, "cpu_unavailable", lambda: "has not been built")
    assert refused(*operands())
