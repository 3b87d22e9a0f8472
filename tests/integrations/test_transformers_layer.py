"""The attention function itself, and the import without transformers."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", minversion="5.4")

from fused_attention import Band, attention  # noqa: E402
from fused_attention.integrations import _transformers_attention as layer  # noqa: E402
from fused_attention.integrations._transformers_version import require_transformers  # noqa: E402
from fused_attention.integrations.transformers import (  # noqa: E402
    fused_attention_forward,
    fused_attention_mask,
)


def operands(len_q: int = 5, len_k: int = 5, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(batch, 4, len_q, 8),
        torch.randn(batch, 2, len_k, 8),
        torch.randn(batch, 2, len_k, 8),
    )


def module(**attributes: Any) -> torch.nn.Module:
    made = torch.nn.Module()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def forward(*tensors: Tensor, mask: Any = None, **options: Any) -> Tensor:
    of = options.pop("module", module())
    out, probabilities = fused_attention_forward(of, *tensors, mask, **options)
    assert probabilities is None and out.is_contiguous()
    return out.transpose(1, 2)


@pytest.mark.parametrize(
    ("options", "band"),
    [
        ({}, Band.causal()),
        ({"module": module(is_causal=False)}, Band.full()),
        ({"module": module(is_causal=True), "is_causal": False}, Band.full()),
        ({"module": module(is_causal=False), "is_causal": True}, Band.causal()),
        ({"sliding_window": 3}, Band.window(2, 0)),
        ({"sliding_window": 3, "is_causal": False}, Band.window(2, 2)),
    ],
)
@pytest.mark.parametrize("lengths", [(5, 5), (2, 5), (1, 5)])
def test_without_a_mask(options: dict[str, Any], band: Band, lengths: tuple[int, int]) -> None:
    tensors = operands(*lengths)
    torch.testing.assert_close(forward(*tensors, **options), attention(*tensors, band=band))


def test_padding_alone() -> None:
    tensors = operands()
    padding = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    bias = torch.zeros(2, 1, 1, 5).masked_fill(padding[:, None, None] == 0, -torch.inf)
    found = forward(*tensors, mask=padding)
    expected = attention(*tensors, causal=True, bias=bias)
    torch.testing.assert_close(found, expected)
    window = forward(*tensors, mask=padding, sliding_window=2)
    torch.testing.assert_close(window, attention(*tensors, band=Band.sliding(2), bias=bias))


def test_step_of_decoding_reads_no_more_of_a_cache_than_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def recording(*args: Tensor, **options: Any) -> Tensor:
        seen.update(options)
        return attention(*args, **options)

    monkeypatch.setattr(layer, "attention", recording)
    query, key, value = operands(1, 7)
    visible = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0]]).bool()[:, None, None]
    found = forward(query, key, value, mask=visible)
    assert seen["kv_lengths"].tolist() == [3, 4]
    key[:, :, 4:] = value[:, :, 4:] = torch.nan
    torch.testing.assert_close(forward(query, key, value, mask=visible), found)


def test_mask_for_more_keys_than_there_are() -> None:
    tensors = operands()
    visible = torch.ones(1, 1, 5, 9).bool().tril()
    torch.testing.assert_close(forward(*tensors, mask=visible), attention(*tensors, causal=True))


def test_position_bias_joins_every_mask() -> None:
    tensors = operands()
    position_bias = torch.randn(1, 4, 5, 5, requires_grad=True)
    padding = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    hidden = torch.zeros(2, 1, 1, 5).masked_fill(padding[:, None, None] == 0, -torch.inf)
    expected = attention(*tensors, causal=True, bias=position_bias + hidden)
    lazy = fused_attention_mask(2, 5, 5, attention_mask=padding.bool())
    for mask in (lazy, lazy.tensor()):
        found = forward(*tensors, mask=mask, position_bias=position_bias)
        torch.testing.assert_close(found, expected)
        assert torch.autograd.grad(found.sum(), position_bias)[0].abs().sum() > 0
    alone = forward(*tensors, position_bias=position_bias)
    torch.testing.assert_close(alone, attention(*tensors, causal=True, bias=position_bias))


def test_softcap_sinks_and_scale() -> None:
    tensors = operands()
    sinks = torch.randn(4)
    found = forward(*tensors, scaling=0.5, softcap=2.0, s_aux=sinks)
    expected = attention(*tensors, causal=True, scale=0.5, softcap=2.0, sinks=sinks)
    torch.testing.assert_close(found, expected)


def test_queries_shared_by_the_batch_and_odd_strides() -> None:
    query, key, value = operands()
    found = forward(query[:1], key, value)
    expected = attention(query[:1].expand(2, -1, -1, -1), key, value, causal=True)
    torch.testing.assert_close(found, expected)
    strided = query.mT.contiguous().mT
    assert strided.stride(-1) != 1
    torch.testing.assert_close(forward(strided, key, value), forward(query, key, value))


@pytest.mark.parametrize("argument", ["cache", "indices", "block_indices", "sinks"])
def test_what_a_model_asks_for_in_vain(argument: str) -> None:
    with pytest.raises(NotImplementedError, match=rf"cannot do .*\({argument}\)"):
        forward(*operands(), **{argument: torch.zeros(1)})


def test_wrong_masks() -> None:
    tensors = operands()
    with pytest.raises(
        ValueError, match="attention_mask: was made for 4 queries and 6 keys, got 5"
    ):
        forward(*tensors, mask=fused_attention_mask(2, 4, 6))
    with pytest.raises(ValueError, match=r"attention_mask: must be 4-D .* got shape \(5, 5, 5\)"):
        forward(*tensors, mask=torch.ones(5, 5, 5).bool())
    with pytest.raises(TypeError, match="bias: must be floating point"):
        forward(*tensors, mask=torch.ones(2, 1, 5, 5, dtype=torch.int64))


@pytest.mark.parametrize("width", [0, -3])
def test_windows_that_hide_a_token_from_itself(width: int) -> None:
    with pytest.raises(ValueError, match=f"sliding_window: must be at least 1, got {width}"):
        forward(*operands(), sliding_window=width)


def test_probabilities_are_missed_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(layer._logger, "warning_once", messages.append)
    forward(*operands(), output_attentions=True)
    assert len(messages) == 1 and '"eager"' in messages[0]


def test_log_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[tuple[Any, ...]] = []
    monkeypatch.setattr(layer.log, "enabled", True)
    monkeypatch.setattr(layer.log, "attended", lambda *args, **options: reported.append(args))
    padding = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    forward(*operands())
    forward(*operands(), mask=fused_attention_mask(2, 5, 5, attention_mask=padding))
    assert [args[0] for args in reported] == ["transformers", "transformers"]
    assert [len(args) for args in reported] == [4, 6]  # the second one with its sequence ends


@pytest.mark.parametrize("version", ["4.57.6", "5.3.0", "5.3.9.dev0"])
def test_too_old(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("transformers")
    old.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(ImportError, match=rf"needs transformers >= 5.4 .*, found {version}$"):
        require_transformers()


@pytest.mark.parametrize("version", ["5.4.0", "5.10.1", "6.0.0.dev0"])
def test_new_enough(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = types.ModuleType("transformers")
    new.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", new)
    require_transformers()


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "fused_attention.integrations.transformers")
    with pytest.raises(ImportError, match=r"needs transformers >= 5.4 \(pip install .*found none$"):
        importlib.import_module("fused_attention.integrations.transformers")
