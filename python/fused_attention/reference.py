"""Attention and its gradient as references: slow, differentiable, for dense and packed batches.

The formulas themselves stand in `formulas.py`. Here they get their dtypes; what a
packed batch makes of them stands in `packed.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_attention.formulas import (
    AttentionGradients,
    AttentionTangents,
    AttentionTerms,
    dense_backward,
    dense_forward,
    dense_jvp,
)
from fused_attention.packed import packed_backward, packed_forward, packed_jvp, sequences_of
from fused_attention.philox import dropout_keep_mask, dropout_threshold, philox4x32

__all__ = [
    "AttentionGradients",
    "AttentionTangents",
    "AttentionTerms",
    "attention_backward_reference",
    "attention_jvp_reference",
    "attention_reference",
    "dropout_keep_mask",
    "dropout_threshold",
    "philox4x32",
]


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    **terms: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * Q K^T) V and the log-sum-exp of its rows.

    A row that sees no key has out 0 and lse -inf (with a sink: the sink). Keys and values beyond
    a length may hold NaN.

    Args:
        query: [B, Hq, Lq, D]; packed (cu_seqlens_q given): [Tq, Hq, D].
        key: [B, Hkv, Lk, D]; packed: [Tk, Hkv, D]. Hkv divides Hq.
        value: [B, Hkv, Lk, Dv]; packed: [Tk, Hkv, Dv].
        cu_seqlens_q: integer [B + 1], where the packed query sequences begin and end.
        cu_seqlens_k: the same for key and value; default cu_seqlens_q.
        compute_dtype: of every step and of the output. Default: fp32 for fp16 and bf16, else the
            query's dtype, with the output in the query's dtype.
        terms: the fields of `AttentionTerms`.

    Returns:
        out [B, Hq, Lq, Dv], packed [Tq, Hq, Dv] with zeros beyond the last sequence, and
        lse [B, Hq, Lq], packed [Hq, Tq] with -inf there; fp64 if computed in fp64, else fp32.

    Raises:
        TypeError: a keyword that is no field of `AttentionTerms`.
        ValueError: bias or kv_lengths with a packed batch, or dropout without rng_state.
    """
    compute = compute_dtype or _default_compute_dtype(query)
    operands = query.to(compute), key.to(compute), value.to(compute)
    own = AttentionTerms(**terms)
    if cu_seqlens_q is None:
        out, lse = dense_forward(*operands, own)
    else:
        out, lse = packed_forward(*operands, sequences_of(own, cu_seqlens_q, cu_seqlens_k))
    return out.to(compute_dtype or query.dtype), lse


def attention_backward_reference(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    **terms: Any,
) -> AttentionGradients:
    """The gradient formula of the flash kernels, from the saved out and lse.

        P  = exp(S - lse)        delta = rowsum(grad_out * out) - grad_lse
        dP = grad_out V^T        dS    = P * (dP - delta), which is the gradient of the bias too
        dV = P^T grad_out        dsink = -sum exp(sink - lse) * delta
        dQ = scale * dS K        dK    = scale * dS^T Q

    out and lse count as inputs of their own: they may come from a merge over more keys than these.
    Every operation is differentiable, so autograd through this function is the exact double
    backward. A row with lse -inf contributes zero whatever its grad_out and grad_lse hold.

    Args:
        grad_out: gradient of out, in its shape.
        grad_lse: gradient of lse, in its shape; None is zero.
        query, key, value, cu_seqlens_q, cu_seqlens_k, terms: as in `attention_reference`.
        out, lse: what `attention_reference` returned, or a merge of such results.
        compute_dtype: of every step and of the gradients. Default: fp32 for fp16 and bf16, else
            the query's dtype, with each gradient in its input's dtype.
    """
    compute = compute_dtype or _default_compute_dtype(query)
    operands = grad_out.to(compute), query.to(compute), key.to(compute), value.to(compute)
    results = out.to(compute), lse, grad_lse
    own = AttentionTerms(**terms)
    if cu_seqlens_q is None:
        gradients = dense_backward(*operands, *results, own)
    else:
        sequences = sequences_of(own, cu_seqlens_q, cu_seqlens_k)
        gradients = packed_backward(*operands, *results, own.sinks, sequences)

    def as_input(gradient: Tensor, tensor: Tensor | None) -> Tensor:
        dtype = gradient.dtype if tensor is None else tensor.dtype
        return gradient.to(compute_dtype or dtype)

    return AttentionGradients(
        as_input(gradients.query, query),
        as_input(gradients.key, key),
        as_input(gradients.value, value),
        None if gradients.bias is None else as_input(gradients.bias, own.bias),
        None if gradients.sinks is None else as_input(gradients.sinks, own.sinks),
    )


def attention_jvp_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tangents: AttentionTangents,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    **terms: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention and its derivative in one direction (forward mode, a Jacobian-vector product).

    Args:
        query, key, value, cu_seqlens_q, cu_seqlens_k, terms: as in `attention_reference`.
        tangents: the direction, in the shapes of the inputs; see `dense_jvp`.
        compute_dtype: as in `attention_reference`.

    Returns:
        out and lse of `attention_reference`, then the tangents of both, in their shapes and dtypes.
    """
    compute = compute_dtype or _default_compute_dtype(query)
    operands = query.to(compute), key.to(compute), value.to(compute)
    directions = AttentionTangents(*(None if t is None else t.to(compute) for t in tangents))
    own = AttentionTerms(**terms)
    if cu_seqlens_q is None:
        results = dense_jvp(*operands, directions, own)
    else:
        sequences = sequences_of(own, cu_seqlens_q, cu_seqlens_k)
        results = packed_jvp(*operands, directions, sequences)
    out, lse, d_out, d_lse = results
    dtype = compute_dtype or query.dtype
    return out.to(dtype), lse, d_out.to(dtype), d_lse


def _default_compute_dtype(query: Tensor) -> torch.dtype:
    return torch.float32 if query.dtype in (torch.float16, torch.bfloat16) else query.dtype
