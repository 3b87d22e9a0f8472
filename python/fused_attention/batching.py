"""vmap over the operators: a dense problem takes the new dimension into its batch.

What cannot be folded runs row by row: packed batches, batched sinks, and dropout, whose mask
depends on the batch index and must be the one that each row alone would get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fused_attention.backends.call import Call
from fused_attention.signature import BIAS, join_backward, join_jvp, split_backward, split_jvp

Dims = Sequence[Any]  # per argument: the vmapped dimension, or None
Rule = Callable[..., tuple[tuple[Tensor, ...], Dims]]


def forward_rule(op: Callable[..., Any]) -> Rule:
    """The vmap rule of fused_attention::forward."""

    def rule(info: Any, in_dims: Dims, *args: Any) -> tuple[tuple[Tensor, ...], Dims]:
        size = info.batch_size
        call, dims = Call(*args[:-1]), Call(*in_dims[:-1])
        if not _foldable(call, dims):
            return _row_by_row(op, size, in_dims, args)
        batch = _batch(call.query, dims.query)
        folded = _fold_call(call, dims, size, batch, per_row_bias=False)
        out, lse = op(*folded, args[-1])
        return (out.unflatten(0, (size, batch)), lse.unflatten(0, (size, batch))), (0, 0)

    return rule


def backward_rule(op: Callable[..., Any]) -> Rule:
    """The vmap rule of fused_attention::backward."""

    def rule(info: Any, in_dims: Dims, *args: Any) -> tuple[tuple[Tensor, ...], Dims]:
        size = info.batch_size
        grads, call, results, (backend, bias_grad) = split_backward(args)
        grad_dims, dims, result_dims, _ = split_backward(in_dims)
        # The gradient of the sinks is summed over the batch, which folding would sum over too.
        if call.sinks is not None or not _foldable(call, dims):
            return _row_by_row(op, size, in_dims, args)
        batch = _batch(call.query, dims.query)
        folded = _fold_call(call, dims, size, batch, per_row_bias=bias_grad)
        outer = [
            None if tensor is None else _fold(tensor, dim, size)
            for tensor, dim in zip((*grads, *results), (*grad_dims, *result_dims), strict=True)
        ]
        dq, dk, dv, dbias, dsinks = op(
            *join_backward(outer[:2], Call(*folded), outer[2:], (backend, bias_grad))
        )
        dq, dk, dv = (grad.unflatten(0, (size, batch)) for grad in (dq, dk, dv))
        if not bias_grad:
            return (dq, dk, dv, dbias, dsinks), (0, 0, 0, None, None)
        dbias = dbias.unflatten(0, (size, batch))
        if _batch(call.bias, dims.bias) == 1:
            dbias = dbias.sum(dim=1, keepdim=True)
        return (dq, dk, dv, dbias, dsinks), (0, 0, 0, 0, None)

    return rule


def jvp_rule(op: Callable[..., Any]) -> Rule:
    """The vmap rule of fused_attention::jvp."""

    def rule(info: Any, in_dims: Dims, *args: Any) -> tuple[tuple[Tensor, ...], Dims]:
        size = info.batch_size
        call, tangents, backend = split_jvp(args)
        dims, tangent_dims, _ = split_jvp(in_dims)
        *operand_dims, bias_dim, sinks_dim = tangent_dims
        if sinks_dim is not None or not _foldable(call, dims):
            return _row_by_row(op, size, in_dims, args)
        batch = _batch(call.query, dims.query)
        *operands, bias, sinks = tangents
        folded = _fold_call(call, dims, size, batch, per_row_bias=bias_dim is not None)
        moves = [
            None if tangent is None else _fold(tangent, dim, size)
            for tangent, dim in zip(operands, operand_dims, strict=True)
        ]
        if bias is not None:
            # As _fold_call has the bias, or still broadcast over all.
            own_rows = folded[BIAS].shape[0] != 1
            bias = _fold(bias, bias_dim, size, batch) if own_rows else bias
        results = op(*join_jvp(Call(*folded), (*moves, bias, sinks), backend))
        return tuple(result.unflatten(0, (size, batch)) for result in results), (0,) * 4

    return rule


def _foldable(call: Call, dims: Any) -> bool:
    return not call.packed and call.rng_state is None and dims.sinks is None


def _batch(tensor: Tensor | None, dim: Any) -> int:
    """Size of the first dimension that the row of a vmapped tensor has."""
    assert tensor is not None
    return tensor.shape[1 if dim == 0 else 0]


def _fold_call(call: Call, dims: Any, size: int, batch: int, per_row_bias: bool) -> list[Any]:
    """Call's fields for size * batch batches."""
    fields = call._asdict()
    for name in ("query", "key", "value", "kv_lengths", "band_offsets"):
        if fields[name] is not None:
            fields[name] = _fold(fields[name], getattr(dims, name), size)
    if call.bias is not None and (dims.bias is not None or call.bias.shape[0] != 1 or per_row_bias):
        fields["bias"] = _fold(call.bias, dims.bias, size, batch)
    slopes = call.alibi_slopes
    if slopes is not None and dims.alibi_slopes is None:
        fields["alibi_slopes"] = _fold(slopes, None, size) if slopes.dim() == 2 else slopes
    elif slopes is not None:
        slopes = slopes.movedim((dims.alibi_slopes,), (0,))
        per_row = slopes.unsqueeze(1) if slopes.dim() == 2 else slopes  # [size, B|1, H]
        fields["alibi_slopes"] = _fold(per_row, 0, size, batch)
    return list(fields.values())


def _fold(tensor: Tensor, dim: int | None, size: int, batch: int | None = None) -> Tensor:
    """[size, B, ...] (vmapped at `dim`; None: not at all) as [size * B, ...].

    With `batch`, a B of 1 is broadcast to it first.
    """
    tensor = tensor.unsqueeze(0) if dim is None else tensor.movedim((dim,), (0,))
    batch = tensor.shape[1] if batch is None else batch
    return row_contiguous(tensor.expand(size, batch, *tensor.shape[2:]).flatten(0, 1))


def _row_by_row(
    op: Callable[..., Any], size: int, in_dims: Dims, args: Sequence[Any]
) -> tuple[tuple[Tensor, ...], Dims]:
    def row(index: int) -> list[Any]:
        return [
            arg if dim is None else row_contiguous(arg.select(dim, index))
            for arg, dim in zip(args, in_dims, strict=True)
        ]

    if size == 0:
        empty = [
            arg if dim is None else torch.zeros_like(arg.sum(dim))
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        results = [op(*empty)]
    else:
        results = [op(*row(index)) for index in range(size)]
    stacked = tuple(torch.stack(parts)[:size] for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def row_contiguous(tensor: Tensor) -> Tensor:
    """The tensor with contiguous rows, as operators want query, key, value and their gradients.

    What has less than three dimensions (lengths, slopes, sinks) is contiguous altogether.
    """
    if tensor.dim() >= 3 and (tensor.stride(-1) == 1 or tensor.shape[-1] == 1):
        return tensor
    return tensor.contiguous()
