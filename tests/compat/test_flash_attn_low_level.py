"""The functions that ring and context parallelism call: explicit backward, merged statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compat.helpers import assert_same, draw, integers, normal
from torch import Tensor

from fused_attention import merge_attention
from fused_attention.compat import flash_attn, flash_attn_interface

SLOPES = torch.tensor([0.3, 0.05, 0.8, 0.1])
CU_Q, CU_K = integers(0, 3, 3, 8), integers(0, 4, 6, 15)
Call = Callable[..., Any]


def zeros_like(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.zeros_like(tensor.detach()) for tensor in tensors]


def test_dense_forward_and_backward() -> None:
    inputs = draw()
    tail = 0.3, True, 2, -1, 1.5, SLOPES
    out, lse, pattern, rng_state = flash_attn._flash_attn_forward(*inputs, 0.0, *tail, False)
    assert not out.requires_grad and pattern.numel() == 0 and rng_state.shape == (2,)
    wanted, wanted_lse, _ = flash_attn.flash_attn_func(
        *inputs, 0.0, 0.3, True, (2, -1), 1.5, SLOPES, return_attn_probs=True
    )
    assert torch.equal(out, wanted) and torch.equal(lse, wanted_lse)
    dout, grads = normal(*out.shape, seed=9), zeros_like(inputs)
    sums = flash_attn._flash_attn_backward(
        dout, *inputs, out, lse, *grads, 0.0, *tail, deterministic=True
    )
    assert_same(sums, (dout * out).sum(-1).transpose(1, 2))
    for found, exact in zip(grads, torch.autograd.grad(wanted, inputs, dout), strict=True):
        assert torch.equal(found, exact)


def test_packed_forward_and_backward() -> None:
    inputs = normal(9, 4, 8, seed=1), normal(15, 2, 8, seed=2), normal(15, 2, 8, seed=3)
    inputs = tuple(x.requires_grad_() for x in inputs)
    lengths = CU_Q, CU_K, 5, 9
    tail = 0.3, True, -1, -1, 0.0, None
    out, lse, *_ = flash_attn._flash_attn_varlen_forward(*inputs, *lengths, 0.0, *tail)
    wanted = flash_attn.flash_attn_varlen_func(*inputs, *lengths, 0.0, 0.3, True)
    assert torch.equal(out, wanted)
    dout, grads = normal(*out.shape, seed=9), zeros_like(inputs)
    sums = flash_attn._flash_attn_varlen_backward(
        dout, *inputs, out, lse, *grads, *lengths, 0.0, *tail, deterministic=False
    )
    assert_same(sums, (dout * out).sum(-1).T)
    for found, exact in zip(grads, torch.autograd.grad(wanted, inputs, dout), strict=True):
        assert torch.equal(found, exact)


def test_backward_drops_what_the_forward_dropped() -> None:
    inputs = draw()
    tail = 0.3, None, False, -1, -1, 0.0, None
    torch.manual_seed(3)
    out, lse, pattern, rng_state = flash_attn._flash_attn_forward(*inputs, *tail, True)
    assert pattern.shape == (2, 4, 5, 7)
    torch.manual_seed(3)
    wanted = flash_attn.flash_attn_func(*inputs, 0.3)
    assert torch.equal(out, wanted)
    dout, grads = normal(*out.shape, seed=9), zeros_like(inputs)
    arguments = dout, *inputs, out, lse, *grads, *tail, False
    flash_attn._flash_attn_backward(*arguments, rng_state=rng_state)
    for found, exact in zip(grads, torch.autograd.grad(wanted, inputs, dout), strict=True):
        assert torch.equal(found, exact)
    with pytest.raises(ValueError, match="rng_state: must be the forward's"):
        flash_attn._flash_attn_backward(*arguments)


def test_ring_attention_is_exact() -> None:
    """Forward over two halves of the keys, merged; backward of each from the merged out and lse."""
    q, k, v = draw()
    tail = 0.3, False, -1, -1, 0.0, None
    halves = [(k[:, :3], v[:, :3]), (k[:, 3:], v[:, 3:])]
    parts = [flash_attn._flash_attn_forward(q, *kv, 0.0, *tail, False) for kv in halves]
    (out1, lse1, *_), (out2, lse2, *_) = parts
    out, lse = merge_attention(out1.transpose(1, 2), lse1, out2.transpose(1, 2), lse2)
    out = out.transpose(1, 2)
    whole = flash_attn.flash_attn_func(q, k, v, 0.0, 0.3)
    assert_same(out, whole)
    dout = normal(*out.shape, seed=9)
    wanted = torch.autograd.grad(whole, (q, k, v), dout)
    dq_sum = torch.zeros_like(q)
    for rows, kv in zip((slice(3), slice(3, 7)), halves, strict=True):
        grads = zeros_like((q, *kv))
        flash_attn._flash_attn_backward(dout, q, *kv, out, lse, *grads, 0.0, *tail, False)
        dq_sum += grads[0]
        assert_same(grads[1], wanted[1][:, rows])
        assert_same(grads[2], wanted[2][:, rows])
    assert_same(dq_sum, wanted[0])


def test_padding_and_unused_keys_of_the_packed_forward() -> None:
    q, k, v = normal(9, 4, 8, seed=1), normal(15, 2, 8, seed=2), normal(15, 2, 8, seed=3)
    used, leftpad = integers(3, 2, 8), integers(1, 0, 4)
    kept = [slice(1, 3), slice(4, 6), slice(10, 14)]
    hidden = torch.ones(15, dtype=torch.bool)
    for rows in kept:
        hidden[rows] = False
    wanted = flash_attn._flash_attn_varlen_forward(
        q, k[~hidden], v[~hidden], CU_Q, integers(0, 2, 4, 8), 5, 4, 0.0, None, True
    )
    k[hidden], v[hidden] = torch.nan, torch.nan
    found = flash_attn._flash_attn_varlen_forward(
        q, k, v, CU_Q, CU_K, 5, 9, 0.0, None, True, leftpad_k=leftpad, seqused_k=used
    )
    assert_same(found.out, wanted.out)
    assert_same(found.lse, wanted.lse)


def test_flash_attn_3_dense_and_cached() -> None:
    inputs = draw()
    out, lse, *partial = flash_attn_interface._flash_attn_forward(
        *inputs, softmax_scale=0.3, causal=True
    )
    assert [tensor.numel() for tensor in partial] == [0, 0] and not out.requires_grad
    wanted = flash_attn_interface.flash_attn_func(*inputs, 0.3, True)
    assert_same(out, wanted)
    into = torch.empty_like(out)
    again = flash_attn_interface._flash_attn_forward(
        *inputs, out_=into, softmax_scale=0.3, causal=True, seqused_k=integers(7, 7)
    )
    assert again[0] is into and torch.equal(into, out)
    dout, grads = normal(*out.shape, seed=9), zeros_like(inputs)
    sums = flash_attn_interface._flash_attn_backward(
        dout,
        *inputs,
        out,
        lse,
        dq=grads[0],
        dk=grads[1],
        dv=grads[2],
        softmax_scale=0.3,
        is_causal=True,
    )
    assert_same(sums, (dout * out).sum(-1).transpose(1, 2))
    exact = torch.autograd.grad(wanted, inputs, dout)
    for found, gradient in zip(grads, exact, strict=True):
        assert_same(found, gradient)


def test_flash_attn_3_packed() -> None:
    inputs = normal(9, 4, 8, seed=1), normal(15, 2, 8, seed=2), normal(15, 2, 8, seed=3)
    inputs = tuple(x.requires_grad_() for x in inputs)
    lengths = {"cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K, "max_seqlen_q": 5, "max_seqlen_k": 9}
    used = integers(2, 0, 4), integers(4, 1, 5)
    out, lse, *_ = flash_attn_interface._flash_attn_forward(
        *inputs, **lengths, seqused_q=used[0], seqused_k=used[1]
    )
    wanted = flash_attn_interface.flash_attn_varlen_func(
        *inputs, **lengths, seqused_q=used[0], seqused_k=used[1]
    )
    assert torch.equal(out, wanted)
    dout, grads = normal(*out.shape, seed=9), zeros_like(inputs)
    flash_attn_interface._flash_attn_backward(
        dout, *inputs, out, lse, CU_Q, CU_K, *used, 5, 9, *grads
    )
    for found, exact in zip(grads, torch.autograd.grad(wanted, inputs, dout), strict=True):
        assert_same(found, exact)


def test_flash_attn_3_mistakes() -> None:
    q, k, v = (x.detach() for x in draw())
    with pytest.raises(ValueError, match="seqused_q: needs cu_seqlens_k"):
        flash_attn_interface._flash_attn_forward(q, k, v, seqused_q=integers(1, 1))
    with pytest.raises(ValueError, match="cu_seqlens_q: must be given"):
        flash_attn_interface._flash_attn_forward(q[0], k[0], v[0], cu_seqlens_k=CU_K)


def test_names_that_other_code_asks_for() -> None:
    assert flash_attn.USE_TRITON_ROCM is False
    assert flash_attn._get_block_size_n("cpu", 64, True, False) >= 1 << 20
