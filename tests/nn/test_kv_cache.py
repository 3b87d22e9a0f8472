"""The cache holds what was appended, in order, and refuses what does not belong into it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fused_attention.nn import KVCache


def tokens(count: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    key, value = torch.randn(2, batch, 3, count, 4)
    return key, value


def test_holds_what_was_appended() -> None:
    cache = KVCache(2, 3, 6, 4)
    first, second = tokens(4), tokens(2)
    for stored, given in zip(cache.append(*first), first, strict=True):
        assert torch.equal(stored, given)
    key, value = cache.append(*second)
    assert torch.equal(key, torch.cat((first[0], second[0]), 2))
    assert torch.equal(value, torch.cat((first[1], second[1]), 2))
    assert key.data_ptr() == cache.key.data_ptr() and cache.length == 6
    assert repr(cache) == (
        "KVCache(batch=2, heads=3, length=6 of 6, head_dim=4, torch.float32, cpu)"
    )


def test_crop() -> None:
    cache = KVCache(2, 3, 6, 4)
    given = tokens(5)
    cache.append(*given)
    cache.crop(2)
    more = tokens(1)
    key, _ = cache.append(*more)
    assert torch.equal(key, torch.cat((given[0][:, :, :2], more[0]), 2))
    cache.crop(0)
    assert cache.length == 0
    with pytest.raises(ValueError, match=r"length: must be in \[0, 0\], got 1"):
        cache.crop(1)


def test_reorder() -> None:
    cache = KVCache(2, 3, 6, 4)
    key, value = tokens(3)
    cache.append(key, value)
    cache.reorder(torch.tensor([1, 1]))
    assert torch.equal(cache.key[:, :, :3], key[[1, 1]])
    assert torch.equal(cache.value[:, :, :3], value[[1, 1]])


MISTAKES: dict[str, tuple[Callable[[KVCache], object], type[Exception], str]] = {
    "too many": (
        lambda cache: cache.append(*tokens(7)),
        ValueError,
        "cache: has room for 6 tokens, got 7",
    ),
    "another batch": (
        lambda cache: cache.append(*tokens(1, batch=1)),
        ValueError,
        r"cache: takes keys and values of shape \(2, 3, new tokens, 4\), got \(1, 3, 1, 4\) and",
    ),
    "another dtype": (
        lambda cache: cache.append(*(x.half() for x in tokens(1))),
        ValueError,
        "cache: holds torch.float32, got torch.float16",
    ),
    "gradients": (
        lambda cache: cache.append(*(x.requires_grad_() for x in tokens(1))),
        RuntimeError,
        "cache: carries no gradients; call the module under torch.no_grad()",
    ),
    "no room at all": (lambda cache: KVCache(1, 1, 0, 4), ValueError, "max_length: must be at"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    call, error, message = MISTAKES[name]
    cache = KVCache(2, 3, 6, 4)
    with pytest.raises(error, match=message):
        call(cache)
    assert cache.length == 0
