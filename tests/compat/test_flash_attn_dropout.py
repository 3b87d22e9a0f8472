"""Dropout: it follows torch.manual_seed, and S_dmask tells what it took."""

from __future__ import annotations

import pytest
import torch
from compat.helpers import assert_same, draw, integers, normal
from compat.plain_attention import plain_attention
from torch import Tensor

from fused_attention.compat.flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)

DROPOUT = 0.25  # a multiple of 1 / 65536, which is what dropout counts in


def keep_mask(pattern: Tensor) -> Tensor:
    return ~torch.signbit(pattern)


def test_pattern_explains_the_result() -> None:
    q, k, v = draw(6, 9)
    slopes = torch.tensor([0.3, 0.05, 0.8, 0.1])
    options = {"causal": True, "window_size": (5, 0), "softcap": 2.0, "alibi_slopes": slopes}
    torch.manual_seed(7)
    out, lse, pattern = flash_attn_func(q, k, v, DROPOUT, return_attn_probs=True, **options)
    assert pattern.shape == (2, 4, 6, 9) and pattern.dtype == q.dtype
    keep = keep_mask(pattern)
    dropped_share = (~keep).double().mean().item()
    assert 0.15 < dropped_share < 0.35
    plain = {"causal": True, "window": (5, 0), "softcap": 2.0, "slopes": slopes}
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    total = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        wanted, wanted_lse = plain_attention(
            q[b], k[b], v[b], keep=keep[b], keep_probability=1 - DROPOUT, **plain
        )
        assert_same(out[b], wanted)
        assert_same(lse[b], wanted_lse)  # of all keys, the dropped ones among them
        softmax = plain_attention(q[b], k[b], torch.eye(9)[:, None].expand(9, 2, 9), **plain)[0]
        size = pattern[b].abs()
        assert_same(size / size.sum(-1, keepdim=True), softmax.transpose(0, 1))
        assert_same(size.amax(-1), torch.ones(4, 6))
        total = total + wanted.square().sum()
    for grad, wanted in zip(grads, torch.autograd.grad(total, (q, k, v)), strict=True):
        assert_same(grad, wanted)


def test_seed_decides() -> None:
    q, k, v = draw()

    def run(seed: int, probs: bool = False) -> Tensor:
        torch.manual_seed(seed)
        found = flash_attn_func(q, k, v, DROPOUT, return_attn_probs=probs)
        return found[0] if probs else found

    assert torch.equal(run(1), run(1))
    assert torch.equal(run(1), run(1, probs=True))
    assert not torch.equal(run(1), run(2))
    torch.manual_seed(1)
    first, second = flash_attn_func(q, k, v, DROPOUT), flash_attn_func(q, k, v, DROPOUT)
    assert not torch.equal(first, second)


def test_stacks_drop_the_same() -> None:
    q, k, v = draw(6, 6, heads_k=4)
    calls = [
        lambda: flash_attn_func(q, k, v, DROPOUT, return_attn_probs=True),
        lambda: flash_attn_kvpacked_func(
            q, torch.stack([k, v], 2), DROPOUT, return_attn_probs=True
        ),
        lambda: flash_attn_qkvpacked_func(
            torch.stack([q, k, v], 2), DROPOUT, return_attn_probs=True
        ),
    ]
    found = []
    for call in calls:
        torch.manual_seed(3)
        found.append(call())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_pattern_in_low_precision() -> None:
    q, k, v = (x.detach() for x in draw(70, 600, dtype=torch.bfloat16))
    _, _, pattern = flash_attn_func(q, k, v, 0.17, return_attn_probs=True)
    assert pattern.dtype == torch.bfloat16 and pattern.shape == (2, 4, 70, 600)
    assert abs((pattern < 0).double().mean().item() - 0.17) < 0.005


def test_pattern_of_rows_and_batches_without_keys() -> None:
    q, k, v = draw(5, 3)
    _, _, pattern = flash_attn_func(q, k, v, 0.5, causal=True, return_attn_probs=True)
    assert not pattern[:, :, :2].any() and pattern.isfinite().all()
    q, k, v = draw(5, 0)
    assert flash_attn_func(q, k, v, 0.5, return_attn_probs=True)[2].shape == (2, 4, 5, 0)


CU_Q, CU_K = integers(0, 3, 3, 8), integers(0, 4, 6, 15)


@pytest.mark.parametrize("paged", [False, True])
def test_pattern_of_packed_batches(paged: bool) -> None:
    q = normal(9, 4, 8, seed=1)  # one row of padding
    k, v = normal(15, 2, 8, seed=2), normal(15, 2, 8, seed=3)
    keys, options = (k, v), {"causal": True}
    if paged:
        # Pages of 4 tokens: one, one and three of them, in no order.
        table = torch.tensor([[5, -1, -1], [2, -1, -1], [4, 0, 3]], dtype=torch.int32)
        keys = tuple(normal(6, 4, 2, 8, seed=9) for _ in range(2))
        for pages, tokens in zip(keys, (k, v), strict=True):
            pages[5], pages[2, :2] = tokens[:4], tokens[4:6]
            pages[4], pages[0], pages[3, :1] = tokens[6:10], tokens[10:14], tokens[14:]
        options["block_table"] = table
    torch.manual_seed(5)
    out, lse, pattern = flash_attn_varlen_func(
        q, *keys, CU_Q, CU_K, 5, 9, DROPOUT, return_attn_probs=True, **options
    )
    assert out.shape == q.shape and lse.shape == (4, 9) and pattern.shape == (3, 4, 5, 9)
    assert torch.equal(out[8:], torch.zeros(1, 4, 8, dtype=torch.float64))
    for b, (rows, keys_of) in enumerate([(slice(0, 3), slice(0, 4)), (slice(3, 8), slice(6, 15))]):
        sequence = 2 * b  # the one between has no query
        own = pattern[sequence, :, : rows.stop - rows.start, : keys_of.stop - keys_of.start]
        wanted, _ = plain_attention(
            q[rows],
            k[keys_of],
            v[keys_of],
            causal=True,
            keep=keep_mask(own),
            keep_probability=1 - DROPOUT,
        )
        assert_same(out[rows], wanted)
    assert not pattern[1].any() and not pattern[0, :, 3:].any() and not pattern[0, :, :, 4:].any()


def test_packed_stacks_drop_the_same() -> None:
    x = normal(8, 4, 8, seed=1)
    tail = (5, DROPOUT)
    torch.manual_seed(3)
    first = flash_attn_varlen_func(x, x, x, CU_Q, CU_Q, 5, *tail)
    torch.manual_seed(3)
    kv = flash_attn_varlen_kvpacked_func(x, torch.stack([x, x], 1), CU_Q, CU_Q, 5, *tail)
    torch.manual_seed(3)
    qkv = flash_attn_varlen_qkvpacked_func(torch.stack([x, x, x], 1), CU_Q, *tail)
    assert torch.equal(first, kv) and torch.equal(first, qkv)
