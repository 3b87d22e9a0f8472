"""Calls with nothing but a mask and a scale, on CPUs: one C++ operator for each direction.

For a few tokens Problem, select and the arguments of the general operators take longer than the
attention. The results are the same bits as on the long way, `prepare` and `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from fused_attention.autograd import gradients
from fused_attention.backends import cpu
from fused_attention.backends.call import Call
from fused_attention.batching import row_contiguous
from fused_attention.masks import Band
from fused_attention.options import Window
from fused_attention.prepare import resolve_band
from fused_attention.shortcut import plain_tensors, watched


class _RefusedError(Exception):
    """The operator does not take these tensors; the long way tells why, or serves them."""


def run_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: tuple[bool, Window | None, Band | None],
    numbers: tuple[float | None, float, float],
    backend: str | None,
) -> tuple[Tensor, Tensor] | None:
    """out and lse of a plain call on a CPU, at once; None: go the long way.

    None says nothing about the call: that it is wrong, watched, cast or for another backend is
    found out on the long way.

    Args:
        mask: causal, window and band.
        numbers: scale, softcap and dropout_p.
    """
    scale, softcap, dropout_p = numbers
    if (
        torch.compiler.is_compiling()
        or not plain_tensors(query, key, value)
        or not query.is_cpu
        or (backend is not None and backend != cpu.NAME)
        or not (scale is None or type(scale) is float)
        or not (type(softcap) is type(dropout_p) is float and softcap == dropout_p == 0.0)
        or torch._C._is_any_autocast_enabled()
        or watched((query, key, value))
    ):
        return None
    band = resolve_band(*mask)
    trained = query.requires_grad or key.requires_grad or value.requires_grad
    if not (trained and torch.is_grad_enabled()):
        return cpu.attention(query, key, value, band, scale, trained)
    try:
        apply = _PlainAttention.apply  # type: ignore[attr-defined]
        results: tuple[Tensor, Tensor] = apply(query, key, value, band, scale)
    except _RefusedError:
        return None
    return results


class _PlainAttention(_SingleLevelFunction):
    """A plain call with its gradient; who watches sees the general operator of the gradient."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, band: Band, scale: float | None
    ) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            results = cpu.attention(query, key, value, band, scale, backward_follows=True)
        if results is None:
            raise _RefusedError
        ctx.save_for_backward(query, key, value, *results)
        ctx.band, ctx.scale = band, scale
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        grads, operands, results = (grad_out, grad_lse), (query, key, value), (out, lse)
        found: Sequence[Tensor | None]
        if torch.is_grad_enabled() or watched((*grads, *operands, *results)):
            call = _general_call(*operands, ctx.band, ctx.scale)
            found = gradients(grads, call, results, (cpu.NAME, False))
        else:
            with torch._C._AutoDispatchBelowAutograd():
                found = cpu.attention_gradients(
                    row_contiguous(grad_out), grad_lse, operands, results, ctx.band, ctx.scale
                )
        needed = ctx.needs_input_grad
        wanted = [grad if needed[index] else None for index, grad in enumerate(found[:3])]
        return *wanted, None, None


def _general_call(
    query: Tensor, key: Tensor, value: Tensor, band: Band, scale: float | None
) -> Call:
    """What `prepare` makes of a plain call."""
    len_q, len_k = query.shape[2], key.shape[2]
    scale = query.shape[3] ** -0.5 if scale is None else scale
    offset = len_k - len_q if band.offset is None else band.offset
    tensors = (query, key, value, None, None, None, None, None, None, None, None)
    return Call(*tensors, len_q, len_k, scale, 0.0, band.left, band.right, offset, 0.0)
