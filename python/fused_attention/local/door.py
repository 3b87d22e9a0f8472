"""local_attention: fill in defaults, have LocalProblem check them, choose a backend, call it."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from fused_attention.autocast import lowered
from fused_attention.local.call import LocalCall
from fused_attention.local.operator import ORDER, attend
from fused_attention.local.problem import LocalProblem
from fused_attention.prepare import cast_contiguous, to_int32
from fused_attention.selection import Explanation, choose, explain

Mode = Literal["luong", "log_bias"]


@overload
def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    *,
    width: float,
    sigma: float | Tensor | None = None,
    key_lengths: Tensor | None = None,
    mode: Mode = "luong",
    scale: float | None = None,
    return_lse: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    *,
    width: float,
    sigma: float | Tensor | None = None,
    key_lengths: Tensor | None = None,
    mode: Mode = "luong",
    scale: float | None = None,
    return_lse: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    *,
    width: float,
    sigma: float | Tensor | None = None,
    key_lengths: Tensor | None = None,
    mode: Mode = "luong",
    scale: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each query to a window around a position of its own (Luong et al. 2015).

    Query i sees the keys j in [floor(p_i) - width, floor(p_i) + width] that exist. Its weights are
    the softmax of scale * q_i . k_j over this window, times exp(-(j - p_i)^2 / (2 sigma^2)): the
    paper's local-p, whose weights sum to less than 1. With sigma=inf they are its local-m, where
    p_i = i. Keys outside of every query's window are not read; memory is O(Lq + Lk).

    Differentiable twice in query, key, value, position and a sigma that is a tensor, also through
    lse; the window's edges, and so floor, have no gradient. Under autocast, query, key and value
    are cast as scaled_dot_product_attention casts them.

    Args:
        query: [B, Hq, Lq, D] in fp64, fp32, bf16 or fp16; any strides, last dimension contiguous.
        key: [B, Hkv, Lk, D]; Hkv divides Hq, query head h reads key head h // (Hq // Hkv).
        value: [B, Hkv, Lk, Dv].
        position: p, [B, Hq, Lq] or for all heads [B, 1, Lq]: real numbers in units of keys, 0 being
            the first key, in any order, also outside of the keys. It is computed with in fp32 (fp64
            for fp64); a position in bf16 or fp16 is as coarse as these are.
        width: D >= 0, the half width of the window; inf is every key.
        sigma: of the Gaussian, in keys: a number, or a tensor [], [Hq] or [B, Hq, Lq]. inf is no
            Gaussian. Default: width / 2.
        key_lengths: integer [B], how many keys of each batch row exist; what lies beyond may be
            NaN.
        mode: "luong", the Gaussian multiplies what the softmax gives; "log_bias", its logarithm is
            added to the scores, so that weights sum to 1 (Yang et al. 2018).
        scale: default 1 / sqrt(D); Luong's models have 1.
        return_lse: also return the log-sum-exp of the scores in the window (with mode "log_bias"
            Gaussian included).
        backend: name of the backend to use; default the first that can.

    Returns:
        out [B, Hq, Lq, Dv] in query's dtype and dimension order; with return_lse also
        lse [B, Hq, Lq] in fp32 (fp64 for fp64), natural log. A query whose window has no key gives
        0 and -inf, and has zero gradients.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong device, shape, layout or value.
        NotImplementedError: the backend asked for cannot run this; the message says why.
    """
    problem, call = prepare(query, key, value, position, width, sigma, key_lengths, mode, scale)
    chosen = choose(problem, ORDER, backend)
    out, lse = attend(call, chosen.NAME, problem.needs_grad)
    return (out, lse) if return_lse else out


def explain_local(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    *,
    width: float,
    sigma: float | Tensor | None = None,
    key_lengths: Tensor | None = None,
    mode: Mode = "luong",
    scale: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Explanation:
    """Which backend `local_attention` would run on, and why not the others; runs nothing.

    Raises:
        TypeError, ValueError: as `local_attention`.
    """
    problem, _ = prepare(query, key, value, position, width, sigma, key_lengths, mode, scale)
    return explain(problem, ORDER, backend)


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    width: float,
    sigma: float | Tensor | None,
    key_lengths: Tensor | None,
    mode: str,
    scale: float | None,
) -> tuple[LocalProblem, LocalCall]:
    """Check everything but the numbers inside tensors, and cast what the operator wants cast."""
    query, key, value = lowered(query, key, value)
    problem = LocalProblem.from_tensors(
        query,
        key,
        value,
        position,
        width=width,
        sigma=sigma,
        key_lengths=key_lengths,
        mode=mode,
        scale=scale,
    )
    wide = torch.float64 if problem.dtype == torch.float64 else torch.float32
    rows = query.shape[:-1]
    if isinstance(sigma, Tensor):
        sigma = cast_contiguous((sigma[:, None] if sigma.dim() == 1 else sigma).expand(rows), wide)
    position = position.expand(rows)
    call = LocalCall(
        query,
        key,
        value,
        position.to(wide).contiguous(),
        sigma if isinstance(sigma, Tensor) else None,
        to_int32(key_lengths),
        problem.width,
        0.0 if problem.sigma is None else problem.sigma,
        problem.scale,
        problem.mode == "log_bias",
    )
    return problem, call
