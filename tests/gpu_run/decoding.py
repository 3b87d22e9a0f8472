"""Steps of decoding for the programs that run kernels: tensors, and what comes out in theory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from budget import assert_within_budget
from torch import Tensor

from fused_attention.decoding import attention_with_kv_cache, explain_with_kv_cache
from fused_attention.reference import attention_reference

PAGE = 16
HALF = torch.bfloat16


def decoding_inputs(
    device: str,
    lengths: Sequence[int] = (5, 63, 150),
    heads: tuple[int, int] = (8, 2),
    capacity: int = 192,
    dim: int = 64,
    paged: bool = False,
) -> dict[str, Any]:
    """Arguments of attention_with_kv_cache: one new key for each of the cached `lengths`.

    Paged, each sequence has pages of 16 keys of its own, the last page of the pool first.
    """
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    batch, (heads_q, heads_kv) = len(lengths), heads
    tensors = {"query": normal(batch, heads_q, 1, dim)}
    tensors |= {name: normal(batch, heads_kv, capacity, dim) for name in _CACHES}
    tensors |= {name: normal(batch, heads_kv, 1, dim) for name in ("key", "value")}
    tensors = {name: tensor.to(HALF) for name, tensor in tensors.items()}
    if paged:
        tensors |= {name: _as_pages(tensors[name]) for name in _CACHES}
        pages = torch.arange(batch * capacity // PAGE, dtype=torch.int32)
        tensors["block_table"] = pages.flip(0).view(batch, capacity // PAGE)
    tensors["cache_lengths"] = torch.tensor(lengths, dtype=torch.int32)
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def assert_step(out: Tensor, inputs: dict[str, Tensor]) -> None:
    """`out` is within its budget; the caches of `inputs` are contiguous, before or after."""
    given = {name: tensor.cpu() for name, tensor in inputs.items()}
    lengths, caches = given["cache_lengths"], [given[name].clone() for name in _CACHES]
    for row, length in enumerate(lengths):
        for cache, new in zip(caches, (given["key"], given["value"]), strict=True):
            cache[row, :, length] = new[row, :, 0]
    exact, plain = (
        attention_reference(given["query"], *caches, kv_lengths=lengths + 1, compute_dtype=dtype)[0]
        for dtype in (torch.float64, HALF)
    )
    assert_within_budget(out.cpu(), exact, plain)


def decoding_step(backend: str, device: str, paged: bool) -> None:
    """Raises AssertionError where a step by `backend` is not within its budget."""
    out = attention_with_kv_cache(**decoding_inputs(device, paged=paged), backend=backend)
    assert_step(out, decoding_inputs("cpu"))


def decodes(backend: str, device: str, **options: Any) -> bool:
    """Whether the backend takes such a step."""
    reasons = explain_with_kv_cache(**decoding_inputs(device, **options)).reasons
    return not reasons[backend]


def _as_pages(cache: Tensor) -> Tensor:
    """[B, H, capacity, D] -> [pages, H, 16, D], the last page first."""
    batch, heads, capacity, dim = cache.shape
    pages = cache.view(batch, heads, capacity // PAGE, PAGE, dim).transpose(1, 2)
    return pages.reshape(-1, heads, PAGE, dim).flip(0).contiguous()


_CACHES = ("key_cache", "value_cache")
