"""additive_attention: fill in defaults, have the Problem check, choose a backend, call it."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from fused_attention.additive.call import AdditiveCall, wide_dtype
from fused_attention.additive.operator import ORDER, attend
from fused_attention.additive.problem import AdditiveProblem
from fused_attention.autocast import lowered, without_autocast
from fused_attention.masks import Band
from fused_attention.prepare import resolve_band, to_int32
from fused_attention.selection import choose


@overload
def additive_attention(
    query_proj: Tensor,
    key_proj: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    g: float | Tensor | None = None,
    key_lengths: Tensor | None = None,
    band: Band | None = None,
    return_lse: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def additive_attention(
    query_proj: Tensor,
    key_proj: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    g: float | Tensor | None = None,
    key_lengths: Tensor | None = None,
    band: Band | None = None,
    return_lse: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def additive_attention(
    query_proj: Tensor,
    key_proj: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    g: float | Tensor | None = None,
    key_lengths: Tensor | None = None,
    band: Band | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Additive attention: out_i = sum_j softmax_j(v . tanh(q_i + k_j + bias)) value_j.

    The scores of Bahdanau, Cho, Bengio 2015 (https://arxiv.org/abs/1409.0473), where q_i = W s_i
    and k_j = U h_j. Nothing of size [Lq, Lk, D] is ever stored. With g the vector is normed: it is
    g v / |v| (for each head).

    Args:
        query_proj: [B, Lq, D] or with heads [B, H, Lq, D], the projected decoder states.
        key_proj: [B, (H,) Lk, D], the projected encoder states.
        value: [B, (H,) Lk, Dv], usually the encoder states themselves.
        v: [D], with heads also [H, D]; any floating dtype.
        bias: [D], added to each sum before the tanh.
        g: a number or a tensor of no dimensions; None leaves v as it is.
        key_lengths: integer [B], keys from there on are hidden and may hold NaN.
        band: which keys a query sees; default all. An offset of None is Lk - Lq.
        return_lse: also return the log-sum-exp of the scores.
        backend: a backend's name; None takes the first that can.

    Returns:
        out [B, (H,) Lq, Dv] in query_proj's dtype; with return_lse also lse [B, (H,) Lq], fp32
        (fp64 for fp64). Both are differentiable to query_proj, key_proj, value, v, bias and g. A
        query that sees no key has out 0 and lse -inf.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong device, shape, layout or value.
        NotImplementedError: the backend asked for cannot run this.
    """
    problem, call = prepare(
        query_proj, key_proj, value, v, bias=bias, g=g, key_lengths=key_lengths, band=band
    )
    chosen = choose(problem, ORDER, backend)
    out, lse = attend(call, chosen.NAME, problem.needs_grad)
    if query_proj.dim() == 3:
        out, lse = out.squeeze(1), lse.squeeze(1)
    return (out, lse) if return_lse else out


def prepare(
    query_proj: Tensor,
    key_proj: Tensor,
    value: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None,
    g: float | Tensor | None,
    key_lengths: Tensor | None,
    band: Band | None,
) -> tuple[AdditiveProblem, AdditiveCall]:
    """Check everything but the numbers inside tensors; the Call has heads, the bias and g in it."""
    query_proj, key_proj, value = lowered(query_proj, key_proj, value)
    band = resolve_band(False, None, band)
    problem = AdditiveProblem.from_tensors(
        query_proj, key_proj, value, v, bias=bias, g=g, key_lengths=key_lengths, band=band
    )
    if bias is not None:
        query_proj = query_proj + bias.to(query_proj.dtype)
    operands = (query_proj, key_proj, value)
    query, key, values = (x.unsqueeze(1) for x in operands) if query_proj.dim() == 3 else operands
    band = band.resolve(problem.len_q, problem.len_k)
    assert band.offset is not None
    scores = _normed(v.to(wide_dtype(query)), g).expand(problem.heads, problem.dim)
    lengths = to_int32(key_lengths)
    numbers = band.left, band.right, band.offset
    return problem, AdditiveCall(query, key, values, scores.contiguous(), lengths, *numbers)


def _normed(v: Tensor, g: float | Tensor | None) -> Tensor:
    """g v / |v| (Salimans, Kingma 2016, https://arxiv.org/abs/1602.07868), in v's dtype."""
    if g is None:
        return v
    with without_autocast(v.device.type):
        length: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        return v * (g / length)
