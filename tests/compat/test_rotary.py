"""Rotary position embedding with flash-attn's interface, against the pairs turned one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compat.helpers import assert_same, integers, normal
from compat.plain_attention import plain_rotation
from torch import Tensor

from fused_attention.compat.rotary import (
    RotaryEmbedding,
    apply_rotary,
    apply_rotary_emb,
    apply_rotary_emb_func,
    apply_rotary_emb_kv_,
    apply_rotary_emb_qkv_,
    apply_rotary_emb_torch,
)

ANGLE = normal(20, 3, seed=7)
COS, SIN = ANGLE.cos(), ANGLE.sin()  # rotary_dim 6 of head_dim 8
OFFSETS: dict[str, tuple[Any, list[int]]] = {
    "none": (0, [0, 0]),
    "an int": (4, [4, 4]),
    "a tensor": (integers(3, 9), [3, 9]),
    "a long tensor": (torch.tensor([0, 15]), [0, 15]),
}
both_pairings = pytest.mark.parametrize("interleaved", [False, True])


def turned(x: Tensor, first: list[int], interleaved: bool, tables: Any = (COS, SIN)) -> Tensor:
    rows = []
    for b in range(len(x)):
        position = torch.arange(x.shape[1]) + first[b]
        rows.append(plain_rotation(x[b], tables[0][position], tables[1][position], interleaved))
    return torch.stack(rows)


@both_pairings
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", OFFSETS)
def test_values_and_gradient(name: str, inplace: bool, interleaved: bool) -> None:
    offsets, first = OFFSETS[name]
    x = normal(2, 5, 3, 8).requires_grad_()
    before = x.detach().clone()
    out = apply_rotary_emb(x, COS, SIN, interleaved, inplace, offsets)
    reference = before.clone().requires_grad_()
    expected = turned(reference, first, interleaved)
    assert_same(out, expected)
    assert torch.equal(x, out if inplace else before)
    weight = normal(2, 5, 3, 8, seed=1)
    kept = weight.clone()
    (grad,) = torch.autograd.grad(out, x, weight)
    assert_same(grad, torch.autograd.grad(expected, reference, weight)[0])
    assert torch.equal(weight, kept)


@both_pairings
def test_packed(interleaved: bool) -> None:
    x, cu_seqlens = normal(9, 3, 8).requires_grad_(), integers(0, 3, 3, 8)
    offsets = integers(2, 0, 7)
    out = apply_rotary_emb(
        x, COS, SIN, interleaved, seqlen_offsets=offsets, cu_seqlens=cu_seqlens, max_seqlen=5
    )
    position = torch.tensor([2, 3, 4, 7, 8, 9, 10, 11])
    expected = plain_rotation(x[:8], COS[position], SIN[position], interleaved)
    assert_same(out[:8], expected)
    (grad,) = torch.autograd.grad(out[:8].square().sum(), x)
    assert_same(grad[:8], 2 * x[:8])
    by_int = apply_rotary_emb(x, COS, SIN, interleaved, False, 2, cu_seqlens, 5)
    assert_same(by_int[:3], expected[:3])


def test_any_number_of_derivatives() -> None:
    x = normal(1, 2, 1, 8).requires_grad_()
    offsets = integers(3)

    def function(x: Tensor) -> Tensor:
        return apply_rotary_emb(x, COS, SIN, seqlen_offsets=offsets)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_turning_back() -> None:
    x = normal(2, 5, 3, 8)
    there = apply_rotary(x, COS, SIN, 4, interleaved=True)
    assert_same(apply_rotary(there, COS, SIN, 4, interleaved=True, conjugate=True), x)
    assert apply_rotary_emb_func is apply_rotary_emb


@both_pairings
def test_formula_in_torch(interleaved: bool) -> None:
    x = normal(2, 5, 3, 8)
    expected = apply_rotary_emb(x, COS, SIN, interleaved)
    assert_same(apply_rotary_emb_torch(x, COS[:5], SIN[:5], interleaved), expected)
    per_row = (table[:5].expand(2, 5, 3) for table in (COS, SIN))
    assert_same(apply_rotary_emb_torch(x, *per_row, interleaved), expected)


@both_pairings
def test_stacks_are_turned_in_place(interleaved: bool) -> None:
    stack = normal(2, 5, 3, 4, 8)
    source = stack.clone().requires_grad_()
    qkv = source * 1.0
    offsets, first = OFFSETS["a tensor"]
    out = apply_rotary_emb_qkv_(qkv, COS, SIN, None, None, interleaved, offsets)
    assert out.data_ptr() == qkv.data_ptr()
    q, k, v = stack.unbind(2)
    parts = turned(q, first, interleaved), turned(k, first, interleaved), v
    assert_same(out, torch.stack(parts, 2))
    (grad,) = torch.autograd.grad(out.square().sum(), source)
    assert_same(grad, 2 * stack)

    kv = stack[:, :, 1:].clone()
    assert_same(apply_rotary_emb_kv_(kv, COS, SIN, interleaved, offsets), torch.stack(parts[1:], 2))


def test_grouped_heads_and_other_tables_for_keys() -> None:
    qkv = normal(2, 5, 4 + 2 * 2, 8)
    q, k, v = qkv.split([4, 2, 2], dim=2)
    tables = SIN, COS
    expected = torch.cat([turned(q, [0, 0], False), turned(k, [0, 0], False, tables), v], dim=2)
    out = apply_rotary_emb_qkv_(qkv.clone(), COS, SIN, *tables, num_heads_q=4)
    assert_same(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x, cos, sin = (tensor.to(dtype) for tensor in (normal(2, 5, 3, 8), COS, SIN))
    exact = apply_rotary_emb(x.float(), cos.float(), sin.float())
    assert torch.equal(apply_rotary_emb(x, cos, sin), exact.to(dtype))


def test_module() -> None:
    module = RotaryEmbedding(6, base=100.0)
    position = torch.arange(9.0)[:, None]
    angle = position / 100.0 ** (torch.arange(0, 6, 2) / 6)
    tables = angle.cos().double(), angle.sin().double()
    qkv = normal(2, 5, 3, 4, 8)
    expected = turned(qkv[:, :, 0], [2, 2], False, tables)
    out = module(qkv.clone(), seqlen_offset=2)
    torch.testing.assert_close(out[:, :, 0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(out[:, :, 2], qkv[:, :, 2])
    q, kv = qkv[:, :, 0].clone(), qkv[:, :, 1:].clone()
    turned_q, turned_kv = module(q, kv, seqlen_offset=integers(2, 2), max_seqlen=9)
    assert_same(turned_q, out[:, :, 0])
    assert_same(turned_kv, out[:, :, 1:])
    assert module.state_dict() == {}
    assert module.bfloat16()(qkv.bfloat16()).dtype == torch.bfloat16


def test_module_with_scale() -> None:
    """XPos: q . k depends on the distance only, and decays with it."""
    module = RotaryEmbedding(8, scale_base=16)
    ones = torch.ones(1, 40, 3, 1, 8)
    q, k, _ = module(ones).unbind(2)
    products = torch.einsum("bihd,bjhd->ij", q, k)
    for distance in range(4):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-3, atol=1e-3)
    plain_q, plain_k, _ = RotaryEmbedding(8)(torch.ones(1, 40, 3, 1, 8)).unbind(2)
    plain = torch.einsum("bihd,bjhd->ij", plain_q, plain_k)
    assert products[39, 0].abs() < plain[39, 0].abs()


WRONG: dict[str, tuple[str, Any]] = {
    "x's rank": (r"x: must be a tensor \[batch", lambda x: apply_rotary_emb(x[0], COS, SIN)),
    "packed x's rank": (
        r"x: must be a tensor \[total",
        lambda x: apply_rotary_emb(x, COS, SIN, cu_seqlens=integers(0, 2), max_seqlen=2),
    ),
    "tables differ": ("cos, sin: must both be", lambda x: apply_rotary_emb(x, COS, SIN[:5])),
    "tables too wide": (
        "cos: rotary_dim must be at most head_dim 4",
        lambda x: apply_rotary_emb(x[..., :4], COS, SIN),
    ),
    "beyond the tables": (
        r"within the 20 rows of cos and sin, got \[16, 21\)",
        lambda x: apply_rotary_emb(x, COS, SIN, seqlen_offsets=16),
    ),
    "beyond the tables, tensor": (
        r"within the 20 rows of cos and sin, got \[0, 21\)",
        lambda x: apply_rotary_emb(x, COS, SIN, seqlen_offsets=integers(0, 16)),
    ),
    "before the tables": ("got \\[-1", lambda x: apply_rotary_emb(x, COS, SIN, seqlen_offsets=-1)),
    "offsets' shape": (
        r"seqlen_offsets: must be an int or integer \[batch\]",
        lambda x: apply_rotary_emb(x, COS, SIN, seqlen_offsets=integers(1)),
    ),
    "qkv": ("qkv: must be a tensor", lambda x: apply_rotary_emb_qkv_(x, COS, SIN)),
    "odd heads": (
        "num_heads_q: must leave an even number",
        lambda x: apply_rotary_emb_qkv_(x, COS, SIN, num_heads_q=2),
    ),
    "kv": ("kv: must be a tensor", lambda x: apply_rotary_emb_kv_(x, COS, SIN)),
    "tables are not there yet": (
        "max_seqlen: must be given",
        lambda x: RotaryEmbedding(6)(x[:, :, None].expand(2, 5, 3, 3, 8), None, integers(1, 2)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes(name: str) -> None:
    message, call = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call(normal(2, 5, 3, 8))
