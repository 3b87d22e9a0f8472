"""Rotary position embedding: the arithmetic, which positions, and the derivative.

    out0 = x0 cos - x1 sin        out1 = x0 sin + x1 cos        (RoFormer, Su et al. 2021, eq. 34)

x0 and x1 are the halves of the first rotary_dim components (GPT-NeoX) or, interleaved, their even
and odd ones (GPT-J); what lies beyond rotary_dim stays. fp32 throughout, fp64 for fp64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_attention.compat.conventions import DENSE, PACKED, can_read, packed_places, wrong_shape

Offsets = int | Tensor
Part = tuple[int | slice, bool]  # where in dimension 2, and whether it is the keys' part


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: slice | Tensor,
    *,
    interleaved: bool,
    conjugate: bool = False,
    inplace: bool = False,
) -> Tensor:
    """x turned by the angles of its positions; not differentiable by itself.

    Args:
        x: [..., heads, head_dim].
        cos, sin: [rows, rotary_dim / 2], any floating dtype.
        positions: rows of cos and sin, one for each of x's leading dimensions.
        conjugate: turn back.
        inplace: write into x.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (table[positions].to(dtype).unsqueeze(-2) for table in (cos, sin))
    if conjugate:
        sin = -sin
    half = cos.shape[-1]
    even = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    odd = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    x0, x1 = x[..., even].to(dtype), x[..., odd].to(dtype)
    out = x
    if not inplace:
        out = torch.empty_like(x)
        out[..., 2 * half :] = x[..., 2 * half :]
    out[..., even], out[..., odd] = x0 * cos - x1 * sin, x0 * sin + x1 * cos
    return out


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    seqlen_offsets: Offsets = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    interleaved: bool = False,
    inplace: bool = False,
    conjugate: bool = False,
) -> Tensor:
    """`apply_rotary_emb` without a gradient and, with conjugate, backwards."""
    check_tables(x, cos, sin)
    rows = cos.shape[0]
    positions: slice | Tensor
    if cu_seqlens is None:
        if x.dim() != 4:
            wrong_shape("x", DENSE, x)
        positions = dense_positions(x.shape[0], x.shape[1], seqlen_offsets, rows)
    else:
        if x.dim() != 3:
            wrong_shape("x", PACKED, x)
        positions = packed_positions(x.shape[0], seqlen_offsets, cu_seqlens, rows)
    turn = {"interleaved": interleaved, "conjugate": conjugate, "inplace": inplace}
    with torch.no_grad():
        return rotate(x, cos, sin, positions, **turn)


class Rotate(torch.autograd.Function):
    """apply_rotary with its derivative, the rotation backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        offsets: Offsets,
        cu_seqlens: Tensor | None,
        interleaved: bool,
        inplace: bool,
        conjugate: bool,
    ) -> Tensor:
        ctx.save_for_backward(cos, sin, cu_seqlens)
        ctx.offsets, ctx.interleaved, ctx.conjugate = offsets, interleaved, conjugate
        return apply_rotary(x, cos, sin, offsets, cu_seqlens, None, interleaved, inplace, conjugate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, cu_seqlens = ctx.saved_tensors
        turn = ctx.interleaved, False, not ctx.conjugate
        turned = Rotate.apply(grad, cos, sin, ctx.offsets, cu_seqlens, *turn)
        return turned, None, None, None, None, None, None, None


class RotateParts(torch.autograd.Function):
    """apply_rotary on parts of a stack [batch, seqlen, parts, ...], in place."""

    @staticmethod
    def forward(
        ctx: Any,
        stack: Tensor,
        cos: Tensor,
        sin: Tensor,
        cos_k: Tensor | None,
        sin_k: Tensor | None,
        offsets: Offsets,
        parts: tuple[Part, ...],
        interleaved: bool,
        conjugate: bool,
    ) -> Tensor:
        ctx.save_for_backward(cos, sin, cos_k, sin_k)
        ctx.offsets, ctx.parts = offsets, parts
        ctx.interleaved, ctx.conjugate = interleaved, conjugate
        for where, is_key in parts:
            apply_rotary(
                stack[:, :, where],
                cos if cos_k is None or not is_key else cos_k,
                sin if sin_k is None or not is_key else sin_k,
                offsets,
                interleaved=interleaved,
                inplace=True,
                conjugate=conjugate,
            )
        return stack

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        options = ctx.offsets, ctx.parts, ctx.interleaved, not ctx.conjugate
        # A copy: what arrives here may be the gradient of other results, too.
        turned = RotateParts.apply(grad.clone(), *ctx.saved_tensors, *options)
        return turned, None, None, None, None, None, None, None, None


def check_tables(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """cos and sin belong together and are no wider than x."""
    if cos.dim() != 2 or cos.shape != sin.shape:
        got = f"{tuple(cos.shape)} and {tuple(sin.shape)}"
        raise ValueError(f"cos, sin: must both be [rows, rotary_dim / 2], got {got}")
    if 2 * cos.shape[1] > x.shape[-1]:
        rule = f"rotary_dim must be at most head_dim {x.shape[-1]}"
        raise ValueError(f"cos: {rule}, got {2 * cos.shape[1]}")


def dense_positions(
    batch: int,
    length: int,
    offsets: Offsets,
    rows: int,
    *,
    same: bool = False,
    argument: str = "seqlen_offsets",
) -> slice | Tensor:
    """Positions of [batch, length]: offsets, offsets + 1, and so on.

    Args:
        offsets: an int, or an integer tensor [batch].
        rows: how many positions the tables have.
        same: all of a sequence stands at its offset.
        argument: what the caller calls the offsets.

    Raises:
        ValueError: a position is not in the tables (of a tensor on an accelerator it is trusted).
    """
    span = 1 if same else length
    if not isinstance(offsets, Tensor):
        _check_range(argument, offsets, offsets + span, rows)
        return slice(offsets, offsets + span)
    if offsets.shape != (batch,) or offsets.dtype not in (torch.int32, torch.int64):
        got = f"{offsets.dtype} {tuple(offsets.shape)}"
        raise ValueError(f"{argument}: must be an int or integer [batch] = [{batch}], got {got}")
    if batch and can_read(offsets):
        _check_range(argument, int(offsets.min()), int(offsets.max()) + span, rows)
    return offsets[:, None] + torch.arange(span, device=offsets.device)


def packed_positions(
    total: int,
    offsets: Offsets,
    cu_seqlens: Tensor,
    rows: int,
    *,
    same: bool = False,
    argument: str = "seqlen_offsets",
) -> Tensor:
    """Positions of packed rows [total], counted from each sequence's offset; 0 after the last."""
    batch = len(cu_seqlens) - 1
    sequence, place = packed_places(total, cu_seqlens)
    if same:
        place = torch.zeros_like(place)
    if isinstance(offsets, Tensor):
        if offsets.shape != (batch,):
            got = f"shape {tuple(offsets.shape)}"
            raise ValueError(f"{argument}: must be an int or [batch] = [{batch}], got {got}")
        offsets = torch.cat([offsets, offsets.new_zeros(1)])[sequence]
    positions = torch.where(sequence < batch, place + offsets, 0)
    if total and can_read(positions):
        _check_range(argument, int(positions.min()), int(positions.max()) + 1, rows)
    return positions


def _check_range(argument: str, first: int, end: int, rows: int) -> None:
    if first < 0 or end > rows:
        rule = f"positions must be within the {rows} rows of cos and sin"
        raise ValueError(f"{argument}: {rule}, got [{first}, {end})")
