"""The formulas of reference.py as a backend: any device, any floating dtype, O(Lq * Lk) memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fused_attention.autocast import without_autocast
from fused_attention.backends.call import Call, DecodeCall, Gradients
from fused_attention.decode_reference import decode_reference
from fused_attention.masks import Band
from fused_attention.reference import (
    AttentionGradients,
    AttentionTangents,
    attention_backward_reference,
    attention_jvp_reference,
    attention_reference,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fused_attention.decode_problem import DecodeProblem
    from fused_attention.problem import Problem

NAME = "reference"
DEVICE_TYPES = ()  # any


def why_not(problem: Problem) -> list[str]:
    """Nothing: it stands last in the order and takes what no fused backend does."""
    return []


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """out and lse of one call."""
    with without_autocast(call.query.device.type):
        out, lse = attention_reference(call.query, call.key, call.value, **_keywords(call))
    return call.empty_out().copy_(out), call.empty_lse().copy_(lse)


def backward(
    call: Call,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    needs_bias_grad: bool,
) -> Gradients:
    """Gradients of one call, from the formula rather than by autograd."""
    with without_autocast(call.query.device.type):
        grads = differentiable_backward((grad_out, grad_lse), call, (out, lse))
    return Gradients(
        _laid_out(grads.query, call.query),
        _laid_out(grads.key, call.key),
        _laid_out(grads.value, call.value),
        _laid_out(grads.bias, call.bias) if grads.bias is not None and needs_bias_grad else None,
        grads.sinks,
    )


def differentiable_backward(
    grads: Sequence[Tensor | None], call: Call, results: Sequence[Tensor]
) -> AttentionGradients:
    """The gradients as a formula that autograd can differentiate: every backend's double backward.

    Args:
        grads: grad_out and grad_lse.
        call: the forward's call.
        results: out and lse, variables of their own.
    """
    grad_out, grad_lse = grads
    assert grad_out is not None
    return attention_backward_reference(
        grad_out, grad_lse, call.query, call.key, call.value, *results, **_keywords(call)
    )


def jvp(call: Call, tangents: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, lse and their tangents along those of query, key, value, bias and sinks."""
    out, lse, out_tangent, lse_tangent = differentiable_jvp(call, tangents)
    return (
        call.empty_out().copy_(out),
        call.empty_lse().copy_(lse),
        call.empty_out().copy_(out_tangent),
        call.empty_lse().copy_(lse_tangent),
    )


def differentiable_jvp(
    call: Call, tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same as a formula that torch can differentiate again."""
    with without_autocast(call.query.device.type):
        return attention_jvp_reference(
            call.query, call.key, call.value, AttentionTangents(*tangents), **_keywords(call)
        )


def decode_why_not(problem: DecodeProblem) -> list[str]:
    """Nothing, as `why_not`."""
    return []


def decode(call: DecodeCall) -> tuple[Tensor, Tensor]:
    """out and lse of one step of decoding; stores the new keys and values."""
    fields = call._asdict()
    for name in ("left", "right", "splits", "batch_invariant"):
        del fields[name]
    with without_autocast(call.query.device.type):
        out, lse = decode_reference(band=Band(call.left, call.right), **fields)
    return call.empty_out().copy_(out), call.empty_lse().copy_(lse)


def _laid_out(grad: Tensor, tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return torch.empty_like(tensor).copy_(grad)


def _keywords(call: Call) -> dict[str, Any]:
    """The call's features as the keyword arguments of reference.py."""
    return {
        "band": call.band,
        "scale": call.scale,
        "bias": call.bias,
        "alibi_slopes": call.alibi_slopes,
        "softcap": call.softcap,
        "sinks": call.sinks,
        "dropout_p": call.dropout_p,
        "rng_state": call.rng_state,
        "kv_lengths": call.kv_lengths,
        "cu_seqlens_q": call.cu_seqlens_q,
        "cu_seqlens_k": call.cu_seqlens_k,
        "band_offsets": call.band_offsets,
    }
