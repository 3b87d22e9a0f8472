"""Every function makes its helper tensors where the operands are: on GPUs, and on meta."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compat.helpers import draw, integers, normal
from torch import Tensor

from fused_attention.compat import bert_padding, flash_attn, flash_attn_interface, rotary

# The shapes are all that meta tensors have; a helper tensor on the CPU would be refused.
DEVICES = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]
COS, SIN = normal(20, 4, seed=5).cos(), normal(20, 4, seed=5).sin()


def operands(device: str) -> dict[str, Tensor]:
    q, k, v = (x.detach() for x in draw())
    tensors = {
        "q": q,
        "k": k,
        "v": v,
        "cache": normal(3, 16, 2, 8, seed=6),
        "pages": normal(6, 4, 2, 8, seed=7),
        "table": torch.tensor([[4, 0, 2], [1, 3, 5]], dtype=torch.int32),
        "lengths": integers(3, 7),
        "rows": integers(2, 0),
        "ends_q": integers(0, 2, 5),
        "ends_k": integers(0, 3, 7),
        "cos": COS,
        "sin": SIN,
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def packed(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return x["q"][0], x["k"][0], x["v"][0], x["ends_q"], x["ends_k"]


def cached(x: dict[str, Tensor], **options: Any) -> Any:
    return flash_attn.flash_attn_with_kvcache(
        x["q"],
        x["cache"].clone(),
        x["cache"].clone(),
        x["k"][:, :2],
        x["v"][:, :2],
        x["cos"],
        x["sin"],
        causal=True,
        return_softmax_lse=True,
        **{"cache_seqlens": x["lengths"], **options},
    )


CALLS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "dense": lambda x: flash_attn.flash_attn_func(x["q"], x["k"], x["v"], causal=True),
    "packed": lambda x: flash_attn.flash_attn_varlen_func(*packed(x), 3, 4, causal=True),
    "packed pages": lambda x: flash_attn.flash_attn_varlen_func(
        x["q"][0], x["pages"], x["pages"], x["ends_q"], x["ends_k"], 3, 4, block_table=x["table"]
    ),
    "cache": cached,
    "cache, int": lambda x: cached(x, cache_seqlens=4),
    "cache, left padding": lambda x: cached(x, cache_leftpad=x["lengths"] - 2),
    "cache, row numbers": lambda x: cached(x, cache_batch_idx=x["rows"]),
    "cache, pages": lambda x: flash_attn.flash_attn_with_kvcache(
        x["q"], x["pages"], x["pages"], cache_seqlens=x["lengths"], block_table=x["table"]
    ),
    "third, packed cache": lambda x: flash_attn_interface.flash_attn_with_kvcache(
        x["q"][0],
        x["cache"].clone(),
        x["cache"].clone(),
        x["k"][0],
        x["v"][0],
        rotary_cos=x["cos"],
        rotary_sin=x["sin"],
        cache_seqlens=x["lengths"],
        cu_seqlens_q=x["ends_q"],
        cu_seqlens_k_new=x["ends_k"],
        max_seqlen_q=3,
    ),
    "third, unused tokens": lambda x: flash_attn_interface.flash_attn_varlen_func(
        *packed(x), 3, 4, seqused_k=x["lengths"] // 2
    ),
    "low level": lambda x: flash_attn._flash_attn_forward(
        x["q"], x["k"], x["v"], 0.0, None, True, -1, -1, 0.0, None, False
    )[:2],
    "rotary": lambda x: rotary.apply_rotary_emb(
        x["q"], x["cos"], x["sin"], seqlen_offsets=x["lengths"]
    ),
    "rotary, packed": lambda x: rotary.apply_rotary_emb(
        x["q"][0], x["cos"], x["sin"], cu_seqlens=x["ends_q"], max_seqlen=3
    ),
    "rotary module": lambda x: rotary.RotaryEmbedding(8, device=x["q"].device, scale_base=512)(
        x["q"].clone(), x["q"][:, :, None].expand(-1, -1, 2, -1, -1).clone()
    ),
    "padding": lambda x: bert_padding.pad_input(x["q"][0], x["ends_q"].new_ones(5).cumsum(0), 2, 4),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_results_stay_on_the_device(name: str, device: str) -> None:
    expected = CALLS[name](operands("cpu"))
    found = CALLS[name](operands(device))
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True)
    for actual, wanted in pairs:
        assert actual.device.type == device
        assert actual.shape == wanted.shape and actual.dtype == wanted.dtype
        if device != "meta":
            torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-9, atol=1e-10)
