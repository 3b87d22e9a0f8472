"""The doors into the package, each as a call on a tiny problem, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_attention import attention, attention_varlen

DIRECT, LENGTHS = "attention()", "attention(kv_lengths=...)"
BATCH, HEADS, LENGTH, HEAD_DIM = 2, 2, 8, 16

Call = Callable[[], Any]
Three = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Timed:
    """A call to time, in the context that it needs, and what it is compared with.

    One without a `baseline` is itself no door, but what doors are compared with.
    """

    call: Call
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    baseline: str | None = DIRECT


@dataclass(frozen=True)
class Operands:
    """Query, key and value in the layouts of the doors."""

    heads_first: Three  # [B, H, L, D]
    length_first: Three  # [B, L, H, D]
    packed: Three  # [B * L, H, D]
    ends: Tensor  # of the packed sequences
    cached: Tensor  # how many of the keys count, in each row another number
    features: Tensor  # [B, L, H * D]

    @classmethod
    def make(cls, gradients: bool) -> Operands:
        generator = torch.Generator().manual_seed(0)

        def draw() -> Tensor:
            drawn = torch.randn((BATCH, LENGTH, HEADS, HEAD_DIM), generator=generator)
            return drawn.requires_grad_(gradients)

        q, k, v = draw(), draw(), draw()
        ends = torch.arange(0, (BATCH + 1) * LENGTH, LENGTH, dtype=torch.int32)
        return cls(
            (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)),
            (q, k, v),
            (q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)),
            ends,
            LENGTH - 1 - torch.arange(BATCH, dtype=torch.int32),
            q.detach().flatten(2).requires_grad_(gradients),
        )


def direct(operands: Operands) -> Timed:
    return Timed(lambda: attention(*operands.heads_first, causal=True), baseline=None)


def varlen(operands: Operands) -> Timed:
    def call() -> Tensor:
        return attention_varlen(*operands.packed, operands.ends, max_seqlen_q=LENGTH, causal=True)

    return Timed(call)


def flash_attn(operands: Operands) -> Timed:
    from fused_attention.compat.flash_attn import flash_attn_func

    return Timed(lambda: flash_attn_func(*operands.length_first, causal=True))


def flash_attn_3(operands: Operands) -> Timed:
    from fused_attention.compat.flash_attn_interface import flash_attn_func

    return Timed(lambda: flash_attn_func(*operands.length_first, causal=True))


def flash_attn_varlen(operands: Operands) -> Timed:
    from fused_attention.compat.flash_attn import flash_attn_varlen_func

    ends = operands.ends

    def call() -> object:
        return flash_attn_varlen_func(*operands.packed, ends, ends, LENGTH, LENGTH, causal=True)

    return Timed(call, baseline="attention_varlen()")


def lengths(operands: Operands) -> Timed:
    """What a cache of keys is read with."""

    def call() -> Tensor:
        return attention(*operands.heads_first, kv_lengths=operands.cached)

    return Timed(call, baseline=None)


def flash_attn_kvcache(operands: Operands) -> Timed:
    from fused_attention.compat.flash_attn import flash_attn_with_kvcache

    def call() -> object:
        return flash_attn_with_kvcache(*operands.length_first, cache_seqlens=operands.cached)

    return Timed(call, baseline=LENGTHS)


def _torchs_function(operands: Operands) -> Call:
    # Looked up in each call, as code that uses it does.
    return lambda: F.scaled_dot_product_attention(*operands.heads_first, is_causal=True)


def sdpa_scope(operands: Operands) -> Timed:
    from fused_attention.integrations.torch_sdpa import sdpa

    return Timed(_torchs_function(operands), sdpa)


def sdpa_registered(operands: Operands) -> Timed:
    from torch.nn.attention import activate_flash_attention_impl, restore_flash_attention_impl

    from fused_attention.integrations.torch_sdpa import NAME

    @contextmanager
    def activated() -> Iterator[None]:
        activate_flash_attention_impl(NAME)
        try:
            yield
        finally:
            restore_flash_attention_impl()

    return Timed(_torchs_function(operands), activated)


def transformers(operands: Operands) -> Timed:
    from fused_attention.integrations.transformers import (
        fused_attention_forward,
        fused_attention_mask,
    )

    layer = torch.nn.Module()
    mask = fused_attention_mask(BATCH, LENGTH, LENGTH)
    scaling = HEAD_DIM**-0.5

    def call() -> object:
        # As models call it.
        return fused_attention_forward(
            layer, *operands.heads_first, mask, dropout=0.0, scaling=scaling, position_ids=None
        )

    return Timed(call)


def _module(operands: Operands) -> Any:
    from fused_attention.nn import MultiHeadAttention

    torch.manual_seed(0)
    module = MultiHeadAttention(HEADS * HEAD_DIM, HEADS, batch_first=True).eval()
    return module.requires_grad_(operands.features.requires_grad)


def multi_head(operands: Operands) -> Timed:
    module, x = _module(operands), operands.features
    return Timed(lambda: module(x, x, x, need_weights=False), baseline="projections by hand")


def projections(operands: Operands) -> Timed:
    """What nn.MultiHeadAttention does besides, with attention() in the middle."""
    module, x = _module(operands), operands.features

    def call() -> Tensor:
        packed = F.linear(x, module.in_proj_weight, module.in_proj_bias)
        heads = packed.unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(-3)
        out = attention(*(one.transpose(1, 2) for one in heads))
        joined = out.transpose(1, 2).flatten(2)
        return F.linear(joined, module.out_proj.weight, module.out_proj.bias)

    return Timed(call, baseline=None)


DOORS: dict[str, Callable[[Operands], Timed]] = {
    DIRECT: direct,
    "attention_varlen()": varlen,
    "compat flash_attn_func()": flash_attn,
    "compat flash_attn_varlen_func()": flash_attn_varlen,
    "compat flash-attn 3 flash_attn_func()": flash_attn_3,
    LENGTHS: lengths,
    "compat flash_attn_with_kvcache()": flash_attn_kvcache,
    "with sdpa()": sdpa_scope,
    "registered SDPA": sdpa_registered,
    "transformers": transformers,
    "projections by hand": projections,
    "nn.MultiHeadAttention": multi_head,
}
