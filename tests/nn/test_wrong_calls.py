"""Wrong arguments of MultiHeadAttention are refused with their name, the rule and the value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fused_attention.nn import MultiHeadAttention, Rotary

X = torch.randn(2, 5, 8)


def module(**options: Any) -> MultiHeadAttention:
    return MultiHeadAttention(8, 2, batch_first=True, **options)


Mistake = tuple[Callable[[], object], type[Exception], str]
BUILDING: dict[str, Mistake] = {
    "embed_dim": (
        lambda: MultiHeadAttention(0, 2),
        ValueError,
        "embed_dim: must be above 0, got 0",
    ),
    "num_heads": (
        lambda: MultiHeadAttention(8, 0),
        ValueError,
        "num_heads: must be above 0, got 0",
    ),
    "heads that do not divide": (
        lambda: MultiHeadAttention(8, 3),
        ValueError,
        "embed_dim: must be divisible by num_heads 3, got 8",
    ),
    "num_kv_heads": (
        lambda: MultiHeadAttention(12, 6, num_kv_heads=4),
        ValueError,
        "num_kv_heads: must divide num_heads 6, got 4",
    ),
    "dropout": (lambda: module(dropout=1.0), ValueError, "dropout: must be in [0, 1 - 2**-17)"),
    "rotary too wide": (
        lambda: module(rotary=Rotary(dim=6)),
        ValueError,
        "rotary: its dim must be even and at most 4, got 6",
    ),
    "rotary of an odd head": (
        lambda: MultiHeadAttention(6, 2, rotary=Rotary()),
        ValueError,
        "rotary: its dim must be even and at most 3, got 3",
    ),
}
CALLING: dict[str, Mistake] = {
    "no tensor": (
        lambda: module()(X, X.tolist(), X),
        TypeError,
        "key: must be a torch.Tensor, got list",
    ),
    "rank": (
        lambda: module()(X, X[0], X[0]),
        ValueError,
        "key: must be 3-D [batch, length, dim] or, like the others, 2-D [length, dim], got shape",
    ),
    "four dimensions": (
        lambda: module()(X[None], X[None], X[None]),
        ValueError,
        "query: must be 3-D [batch, length, dim] or",
    ),
    "features": (
        lambda: module(vdim=6)(X, X, X),
        ValueError,
        "value: must have 6 features, got 8",
    ),
    "lengths": (
        lambda: module()(X, X, X[:, 1:]),
        ValueError,
        "value: must have key's batch and length (2, 5), got (2, 4)",
    ),
    "batch": (
        lambda: module()(X, X[:1], X[:1]),
        ValueError,
        "key: must have query's batch 2, got 1",
    ),
    "nested": (
        lambda: module()(*[torch.nested.nested_tensor([X[0], X[1]])] * 3),
        TypeError,
        "query: must not be nested",
    ),
    "padding mask's shape": (
        lambda: module()(X, X, X, key_padding_mask=torch.ones(5, 2, dtype=torch.bool)),
        ValueError,
        "key_padding_mask: must have shape [2, 5], got shape (5, 2)",
    ),
    "padding mask's dtype": (
        lambda: module()(X, X, X, key_padding_mask=torch.ones(2, 5, dtype=torch.int64)),
        TypeError,
        "key_padding_mask: must be bool (True is hidden) or floating point, got torch.int64",
    ),
    "mask's shape": (
        lambda: module()(X, X, X, attn_mask=torch.zeros(5, 6)),
        ValueError,
        "attn_mask: must have shape [5, 5] or [4, 5, 5], got shape (5, 6)",
    ),
    "mask per row": (
        lambda: module()(X, X, X, attn_mask=torch.zeros(2, 5, 5)),
        ValueError,
        "attn_mask: must have shape [5, 5] or [4, 5, 5], got shape (2, 5, 5)",
    ),
    "a hint without a mask": (
        lambda: module()(X, X, X, is_causal=True),
        RuntimeError,
        "is_causal: is a hint about attn_mask, which must be given, got None",
    ),
    "lengths beyond the keys": (
        lambda: module()(X, X, X, kv_lengths=torch.tensor([5, 6])),
        ValueError,
        "kv_lengths: must be in [0, 5]",
    ),
    "positions without rotary": (
        lambda: module()(X, X, X, positions=torch.arange(5)),
        ValueError,
        "positions: need a module with rotary, got one without",
    ),
    "positions' shape": (
        lambda: module(rotary=Rotary())(X, X, X, positions=torch.arange(4)),
        ValueError,
        "positions: must have shape [5] or [2, 5], got (4,)",
    ),
    "rotary between two sequences": (
        lambda: module(rotary=Rotary())(X, X[:, 1:], X[:, 1:]),
        ValueError,
        "rotary: needs as many new keys as queries, 5 (it is for self-attention), got 4",
    ),
    "gradients through a cache": (
        lambda: module()(X, X, X, cache=module().new_cache(2, 8)),
        RuntimeError,
        "cache: carries no gradients; call the module under torch.no_grad()",
    ),
}


@pytest.mark.parametrize("name", [*BUILDING, *CALLING])
def test_mistakes(name: str) -> None:
    call, error, message = {**BUILDING, **CALLING}[name]
    with pytest.raises(error, match=re.escape(message)):
        call()
