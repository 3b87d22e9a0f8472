"""Local attention (Luong et al. 2015, section 3.2) and its gradient, as plain torch operations.

The definition of what every backend computes. It materialises [B, H, Lq, Lk]; it runs on any device
and in any floating dtype, and every step is differentiable. For query i with centre p_i

    window_i = keys j with |j - floor(p_i)| <= D
    t_ij     = (j - p_i) / sigma_i           g_ij = exp(-t_ij^2 / 2)
    S_ij     = scale * q_i . k_j             mode log_bias: + ln g_ij  (Yang et al. 2018)
    P_ij     = softmax of S_i over window_i, lse_i = log sum exp of S_i over it
    W_ij     = P_ij g_ij                     mode luong, eq. 10: not renormalised;  log_bias: P_ij
    out_i    = sum_j W_ij v_j

and with A = dO V^T, delta = rowsum(dO * O) - dlse

    luong:     dS = P (g A - delta),  u = W A          log_bias:  dS = P (A - delta),  u = dS
    dQ = scale dS K,   dK = scale dS^T Q,   dV = W^T dO
    dp_i = sum_j u_ij t_ij / sigma_i,   dsigma_i = sum_j u_ij t_ij^2 / sigma_i

sum_j W_ij (dO_i . v_j) = dO_i . O_i in both modes, so delta is what it is without a Gaussian. The
lse of luong knows no Gaussian, hence its u no dlse. The edges of a window have no gradient. An
empty window gives out 0, lse -inf and gradients 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.formulas import statistics_dtype, without_padding
from fused_attention.local.call import LocalCall, LocalGradients

FAR = 1 << 31  # beyond every key and every window


class _Terms(NamedTuple):
    """What forward and backward share, [B, Hq, Lq, Lk]."""

    S: Tensor  # scores, -inf outside of the window
    g: Tensor | None  # None: the Gaussian is in the scores
    t: Tensor


def window_mask(
    position: Tensor, len_k: int, width: float, key_lengths: Tensor | None = None
) -> Tensor:
    """Which keys each query sees.

    Args:
        position: [B, H, Lq].
        len_k: number of keys.
        width: D, at least 0; inf is every key.
        key_lengths: integer [B].

    Returns:
        bool [B, H, Lq, Lk].
    """
    center = position.detach().floor().clamp(-FAR, FAR).long().unsqueeze(-1)
    half = 2 * FAR if math.isinf(width) else math.floor(width)
    key = torch.arange(len_k, device=position.device)
    visible = (key - center).abs() <= half
    if key_lengths is not None:
        visible = visible & (key < key_lengths.to(position.device)[:, None, None, None])
    return visible


def local_reference(
    call: LocalCall, compute_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """out [B, Hq, Lq, Dv] and lse [B, Hq, Lq].

    Args:
        call: the problem.
        compute_dtype: of every step and of out. Default: fp32 for fp16 and bf16, else the query's
            dtype, with out in the query's dtype. The Gaussian's exponent and lse have at least
            fp32.
    """
    own = _in_dtype(call, compute_dtype)
    terms = _terms(own)
    # One more column takes the probability of a row without keys, so that its softmax is finite.
    last = terms.S.new_full((*terms.S.shape[:-1], 1), -torch.inf)
    dead = torch.cat([terms.S, last], dim=-1).amax(dim=-1, keepdim=True) == -torch.inf
    S = torch.cat([terms.S, last.masked_fill(dead, 0.0)], dim=-1)
    lse = S.logsumexp(dim=-1).masked_fill(dead.squeeze(-1), -torch.inf)
    W = S.softmax(dim=-1)[..., :-1]
    if terms.g is not None:
        W = W * terms.g
    value = without_padding(own.value, own.key_lengths)
    out = (_by_head(W, value) @ value.unsqueeze(2)).flatten(1, 2).masked_fill(dead, 0.0)
    return out.to(compute_dtype or call.query.dtype), lse.to(statistics_dtype(lse))


def local_backward_reference(
    call: LocalCall,
    grads: Sequence[Tensor | None],
    results: Sequence[Tensor],
    compute_dtype: torch.dtype | None = None,
) -> LocalGradients:
    """Gradients from the saved out and lse, which count as inputs of their own.

    Args:
        call: the problem.
        grads: of out and lse; that of lse may be None, which is zero.
        results: out and lse. Rows with lse -inf contribute nothing, whatever the gradients hold.
        compute_dtype: as in `local_reference`; given, the gradients have it too.
    """
    own = _in_dtype(call, compute_dtype)
    terms, query, wide = _terms(own), own.query, statistics_dtype(own.query)
    key, value = (without_padding(x, own.key_lengths) for x in (own.key, own.value))
    out, lse = results
    dead = (lse == -torch.inf).unsqueeze(-1)
    lse = lse.to(wide).unsqueeze(-1).masked_fill(dead, 0.0)
    grad_out, grad_lse = grads
    assert grad_out is not None
    grad_out = grad_out.to(query.dtype).masked_fill(dead, 0.0)
    delta = (grad_out.to(wide) * out.to(wide)).sum(dim=-1, keepdim=True)
    if grad_lse is not None:
        delta = delta - grad_lse.to(wide).unsqueeze(-1).masked_fill(dead, 0.0)

    P = (terms.S - lse).exp().to(query.dtype).masked_fill(dead, 0.0)
    A = (_by_head(grad_out, value) @ value.unsqueeze(2).mT).flatten(1, 2)
    W = P if terms.g is None else P * terms.g
    A = A if terms.g is None else A * terms.g
    dS = (P * (A - delta)).to(query.dtype)
    u = (dS if terms.g is None else P * A).to(wide)
    sigma = own.fixed_sigma if own.sigma is None else own.sigma.to(wide).unsqueeze(-1)
    t = terms.t.to(wide)
    gradients = LocalGradients(
        (_by_head(dS, key) @ key.unsqueeze(2)).flatten(1, 2) * own.scale,
        (_by_head(dS, key).mT @ _by_head(query, key)).sum(dim=2) * own.scale,
        (_by_head(W, value).mT @ _by_head(grad_out, value)).sum(dim=2),
        (u * t / sigma).sum(dim=-1),
        None if own.sigma is None else (u * t.square() / sigma).sum(dim=-1),
    )

    def as_input(gradient: Tensor | None, tensor: Tensor | None) -> Tensor | None:
        if gradient is None or tensor is None:
            return None
        return gradient.to(compute_dtype or tensor.dtype)

    return LocalGradients(*map(as_input, gradients, (*call[:4], call.sigma)))  # type: ignore


def weight_scores(call: LocalCall) -> Tensor:
    """ln W + lse of every key, [B, Hq, Lq, Lk] in at least fp32, -inf outside of the window.

    ln W_ij = S_ij + ln g_ij - lse_i in both modes: they differ in the scores that lse sums up.
    """
    return _terms(_in_dtype(call._replace(log_bias=True), None)).S


def _in_dtype(call: LocalCall, compute_dtype: torch.dtype | None) -> LocalCall:
    low = call.query.dtype in (torch.float16, torch.bfloat16)
    compute = compute_dtype or (torch.float32 if low else call.query.dtype)
    exponent = torch.promote_types(compute, torch.float32)
    return call._replace(
        query=call.query.to(compute),
        key=call.key.to(compute),
        value=call.value.to(compute),
        position=call.position.to(exponent),
        sigma=None if call.sigma is None else call.sigma.to(exponent),
    )


def _terms(call: LocalCall) -> _Terms:
    key = without_padding(call.key, call.key_lengths)
    len_k = key.shape[2]
    S = (_by_head(call.query, key) @ key.unsqueeze(2).mT).flatten(1, 2) * call.scale
    visible = window_mask(call.position, len_k, call.width, call.key_lengths)
    distance = torch.arange(len_k, device=key.device) - call.position.unsqueeze(-1)
    t = distance / (call.fixed_sigma if call.sigma is None else call.sigma.unsqueeze(-1))
    exponent = -0.5 * t.square()
    if call.log_bias:
        S = S + exponent.to(S)
    g = None if call.log_bias else exponent.exp().to(S)
    return _Terms(S.masked_fill(~visible, -torch.inf), g, t)


def _by_head(x: Tensor, key: Tensor) -> Tensor:
    """[B, Hq, L, D] as [B, Hkv, Hq / Hkv, L, D]: the query heads that share a key/value head."""
    shared: Tensor = x.unflatten(1, (key.shape[1], x.shape[1] // key.shape[1]))
    return shared
