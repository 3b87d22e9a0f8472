"""Within sdpa(), scaled_dot_product_attention is torch's to the last rule, on our kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from door_reports import door_reports
from integrations.sdpa_cases import BUILTIN, CALLS, EMPTY, SdpaCall
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from fused_attention.integrations.torch_sdpa import sdpa
from fused_attention.nn import recognition

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True)
def masks_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recognition, "_FEWEST_SCORES", 0)
    yield
    assert F.scaled_dot_product_attention is BUILTIN


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_results_and_gradients(call: SdpaCall, dtype: torch.dtype) -> None:
    tensors, options = call.make(dtype)
    with sdpa(), door_reports() as lines:
        found = call.results(F.scaled_dot_product_attention, tensors, options)
    assert [line.partition(" -> ")[2].partition(":")[0] for line in lines] == ["cpu"], lines
    call.assert_right(found, dtype)
    if call.mask is not None:
        assert ("bias" in lines[0]) == (call.band is None), lines
        assert call.band is None or f"band {call.band}," in lines[0], lines


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
def test_empty(name: str, causal: bool) -> None:
    tensors = [torch.randn(shape) for shape in EMPTY[name]]
    exact = F.scaled_dot_product_attention(*tensors, is_causal=causal)
    with sdpa():
        assert torch.equal(F.scaled_dot_product_attention(*tensors, is_causal=causal), exact)


def operands(len_q: int = 6, len_k: int = 9, dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, len_q, dim), *torch.randn(2, 2, 4, len_k, dim)
    return query, key, value


def test_rows_need_not_be_contiguous() -> None:
    tensors = [x.mT.contiguous().mT for x in operands()]
    with sdpa(), door_reports() as lines:
        out = F.scaled_dot_product_attention(*tensors)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(*tensors))
    assert "-> cpu:" in lines[0]


@pytest.mark.parametrize("dropout_p", [0.25, 1.0])
def test_dropout(dropout_p: float) -> None:
    """The share of dropped weights, their scaling, and torch's generator."""
    query, key = torch.zeros(8, 4, 64, 8), torch.zeros(8, 4, 128, 8)
    value = torch.eye(128).expand(8, 4, 128, 128)
    with sdpa():
        torch.manual_seed(0)
        weights = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
        torch.manual_seed(0)
        again = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
    assert torch.equal(weights, again)
    kept = weights != 0
    assert abs(kept.float().mean() - (1 - dropout_p)) < 0.005
    torch.testing.assert_close(weights[kept], torch.full_like(weights[kept], 1 / 128 / 0.75))


@pytest.mark.parametrize("bias", [causal_upper_left, causal_lower_right])
def test_causal_bias(bias: Any) -> None:
    tensors = operands()
    exact = F.scaled_dot_product_attention(*tensors, bias(6, 9))
    with sdpa(), door_reports() as lines:
        torch.testing.assert_close(F.scaled_dot_product_attention(*tensors, bias(6, 9)), exact)
    assert "-> cpu:" in lines[0] and "band causal" in lines[0]


def test_autocast() -> None:
    query, key, value = operands()
    masks = (None, torch.randn(6, 9), torch.rand(6, 9) < 0.5, torch.randn(6, 9).half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for mask in masks:
            exact = F.scaled_dot_product_attention(query, key.bfloat16(), value, mask)
            with sdpa(), door_reports() as lines:
                out = F.scaled_dot_product_attention(query, key.bfloat16(), value, mask)
            assert out.dtype == exact.dtype == torch.bfloat16 and "-> cpu:" in lines[0]
            torch.testing.assert_close(out, exact, rtol=0.02, atol=0.02)


def wrong_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    query, key, value = operands()
    mask = torch.ones(6, 9, dtype=torch.bool)
    return {
        "mask and is_causal": ((query[0], key[0], value[0], mask), {"is_causal": True}),
        "causal bias and is_causal": (
            (query, key, value, causal_upper_left(6, 9)),
            {"is_causal": True},
        ),
        "dtypes": ((query, key.double(), value), {}),
        "integers": ((query.int(), key.int(), value.int()), {}),
        "mask of integers": ((query, key, value, mask.int()), {}),
        "mask of another dtype": ((query, key, value, mask.half()), {}),
        "mask that does not fit": ((query, key, value, mask[:, :8]), {}),
        "mask that enlarges the batch": ((query, key, value, mask.expand(5, 4, 6, 9)), {}),
        "mask of one dimension": ((query, key, value, mask[0]), {}),
        "mask of many dimensions": ((query, key, value, mask.expand(1, 2, 4, 6, 9)), {}),
        "head dimensions": ((query, key[..., :7], value), {}),
        "heads": ((query, key[:, :3], value[:, :3]), {}),
        "grouped heads": ((query, key[:, :3], value[:, :3]), {"enable_gqa": True}),
        "grouped heads without heads": (
            (query[0, 0], key[0, 0], value[0, 0]),
            {"enable_gqa": True},
        ),
        "batches": ((query.repeat(2, 1, 1, 1)[:3], key, value), {}),
        "one dimension": ((query[0, 0, 0], key[0, 0, 0], value[0, 0, 0]), {}),
        "dropout": ((query, key, value), {"dropout_p": 1.5}),
        "no tensor": ((query.tolist(), key, value), {}),
        "unknown keyword": ((query, key, value), {"window": 3}),
        "scale by position": ((query, key, value, None, 0.0, False, 0.5), {}),
    }


@pytest.mark.parametrize("name", wrong_calls())
def test_wrong_calls_raise_torchs_errors(name: str) -> None:
    args, options = wrong_calls()[name]
    with pytest.raises(Exception) as theirs:  # noqa: B017
        F.scaled_dot_product_attention(*args, **options)
    with sdpa(), pytest.raises(type(theirs.value)) as ours:
        F.scaled_dot_product_attention(*args, **options)
    if not isinstance(theirs.value, TypeError):  # Python words those of our function
        assert str(ours.value) == str(theirs.value)


def unserved_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any], str]]:
    query, key, value = operands()
    wide = torch.randn(1, 1, 3, 600)
    nested = torch.nested.nested_tensor(
        [torch.randn(3, 4, 8), torch.randn(5, 4, 8)], layout=torch.jagged
    ).transpose(1, 2)
    return {
        "mask and is_causal": (
            (query, key, value, torch.rand(6, 9) < 0.7),
            {"is_causal": True},
            "attn_mask and is_causal exclude each other",
        ),
        "large heads": ((wide, wide, wide), {}, "no fused kernel can (cpu: head and value dims go"),
        "all dropped": ((query, key, value), {"dropout_p": 1.0}, "dropout_p: must be in [0, 1"),
        "nested": ((nested, nested, nested), {}, "a NestedTensor is not for these kernels"),
        "other device": (
            (query.to("meta"),) * 3,
            {},
            "no fused kernel can (none runs on meta tensors)",
        ),
        "heads of value": (
            (query, key[:, :2], value[:, :1]),
            {"enable_gqa": True},
            "value: must have key's 2 heads, got 1",
        ),
        "value's batch and a mask": (
            (query[:1], key[:1], value, torch.zeros(6, 9)),
            {},
            "value alone enlarges the batch",
        ),
    }


@pytest.mark.parametrize("name", unserved_calls())
def test_what_torch_has_to_serve(name: str) -> None:
    args, options, reason = unserved_calls()[name]
    exact = F.scaled_dot_product_attention(*args, **options)
    with sdpa(), door_reports() as lines:
        out = F.scaled_dot_product_attention(*args, **options)
    assert len(lines) == 1 and f"sdpa -> torch's own, because {reason}" in lines[0], lines
    assert type(out) is type(exact) and out.device == exact.device
    if out.device.type == "cpu" and not out.is_nested:
        assert torch.equal(out, exact)
