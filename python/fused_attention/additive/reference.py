"""Additive attention and its gradient as formulas: what every kernel is held against.

    T_ij = tanh(q_i + k_j)      S_ij = v . T_ij      P = softmax(S)      out = P V

(Bahdanau, Cho, Bengio 2015, https://arxiv.org/abs/1409.0473, appendix A.1.2). They materialise T,
[B, H, Lq, Lk, D], run on any device, in any floating dtype, and every step is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_attention.additive.call import AdditiveCall
from fused_attention.formulas import statistics_dtype, without_padding
from fused_attention.mechanism import Grads


def additive_results(call: AdditiveCall) -> tuple[Tensor, Tensor]:
    """out [B, H, Lq, Dv] in the query's dtype and lse [B, H, Lq] of one call.

    Computed in fp32 for fp16 and bf16. A row that sees no key has out 0 and lse -inf; keys and
    values beyond a length may hold NaN.
    """
    S, _ = additive_scores(call)
    # Zeros in the place of a row's scores keep a softmax without keys, and its gradient, finite.
    dead = S.isneginf().all(dim=-1, keepdim=True)
    S = S.masked_fill(dead, 0.0)
    lse = S.logsumexp(dim=-1).masked_fill(dead.squeeze(-1), -torch.inf)
    P = S.softmax(dim=-1).masked_fill(dead, 0.0)
    out = P @ without_padding(call.value, call.key_lengths).to(P)
    return out.to(call.query.dtype), lse


def additive_gradients(
    call: AdditiveCall, grads: Grads, results: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and v, in their dtypes, from the saved out and lse.

        P = exp(S - lse)     dP = dO V^T     delta = rowsum(dO * O) - dlse     dS = P * (dP - delta)
        dq_i = v * sum_j dS_ij (1 - T_ij^2)      dk_j = v * sum_i dS_ij (1 - T_ij^2)
        dv = sum_ij dS_ij T_ij                   dV = P^T dO

    out and lse count as inputs of their own: they may come from a merge over more keys than these.
    A row with lse -inf contributes zero, whatever its gradients hold.
    """
    S, T = additive_scores(call)
    out, lse = results
    grad_out, grad_lse = grads
    assert grad_out is not None
    dead = lse.isneginf().unsqueeze(-1)
    grad_out = grad_out.to(S).masked_fill(dead, 0.0)
    delta = (grad_out * out.to(S)).sum(dim=-1, keepdim=True)
    if grad_lse is not None:
        delta = delta - grad_lse.to(S).unsqueeze(-1).masked_fill(dead, 0.0)
    P = (S - lse.to(S).unsqueeze(-1).masked_fill(dead, 0.0)).exp()
    dP = grad_out @ without_padding(call.value, call.key_lengths).to(S).mT
    dS = (P * (dP - delta)).unsqueeze(-1)
    d_sum = dS * (1.0 - T.square()) * call.v[:, None, None].to(S)
    found = d_sum.sum(dim=3), d_sum.sum(dim=2), P.mT @ grad_out, (dS * T).sum(dim=(0, 2, 3))
    inputs = call.query, call.key, call.value, call.v
    d_query, d_key, d_value, d_v = (x.to(y.dtype) for x, y in zip(found, inputs, strict=True))
    return d_query, d_key, d_value, d_v


def additive_scores(call: AdditiveCall) -> tuple[Tensor, Tensor]:
    """S [B, H, Lq, Lk], -inf where hidden, and T [B, H, Lq, Lk, D]."""
    dtype = statistics_dtype(call.query)
    key = without_padding(call.key, call.key_lengths).to(dtype)
    T = (call.query.to(dtype).unsqueeze(3) + key.unsqueeze(2)).tanh()
    S = (T @ call.v.to(dtype)[:, None, :, None]).squeeze(-1)
    len_q, len_k = S.shape[-2:]
    visible = call.band.mask(len_q, len_k, call.key_lengths, S.device)
    return S.masked_fill(~visible, -torch.inf), T
