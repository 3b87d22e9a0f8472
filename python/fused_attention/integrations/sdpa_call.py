"""One call of torch's scaled_dot_product_attention as a call of this package's operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.attention.bias import CausalBias, CausalVariant

from fused_attention import log
from fused_attention.autocast import autocast_enabled
from fused_attention.backends import reference
from fused_attention.backends.call import Call
from fused_attention.dispatch import explain, select
from fused_attention.masks import Band
from fused_attention.nn.recognition import (
    broadcast_to_4d,
    broadcasts,
    recognize,
    without_copies,
)
from fused_attention.prepare import prepare, run
from fused_attention.problem import Problem

_FULL, _CAUSAL = Band.full(), Band.causal(0)  # SDPA's diagonal begins at the top left
_BANDS = {CausalVariant.UPPER_LEFT: _CAUSAL, CausalVariant.LOWER_RIGHT: Band.causal()}
# Other subclasses bring operators of their own; the two last are what compilers trace with.
_PLAIN = (Tensor, Parameter, FakeTensor, FunctionalTensor)


class NotServedError(Exception):
    """The call is left to torch; the message says why."""


class ForeignError(NotServedError):
    """An argument is of a class that takes the call over from torch."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """The arguments and the result of F.scaled_dot_product_attention.

    Raises:
        NotServedError: torch's own function has to serve the call, or to refuse it.
    """
    band = _CAUSAL if is_causal else _FULL
    if isinstance(attn_mask, CausalBias) and not is_causal:
        band, attn_mask = _BANDS[attn_mask.variant], None
    check_servable(query, key, value, attn_mask)
    if is_causal and attn_mask is not None:  # some of torch's kernels refuse it, some apply both
        raise NotServedError("attn_mask and is_causal exclude each other")
    lead = None
    if not _is_dense_4d(query, key, value, enable_gqa):
        query, key, value, lead = _to_4d(query, key, value, enable_gqa, attn_mask is not None)
    options: dict[str, Any] = {"band": band}
    if attn_mask is not None:
        options = mask_options(_foldable(attn_mask, lead), query, key)
    problem, call = prepared(query, key, value, scale=scale, dropout_p=dropout_p, **options)
    backend = choose(problem)
    if log.enabled:
        log.served("sdpa", problem, backend)
    out, _ = run(problem, call, backend, None, 0)
    return out if lead is None else out.reshape(*lead, *out.shape[-2:])


def check_servable(*tensors: Tensor | None) -> None:
    """Refuse what only torch's own operators understand.

    Raises:
        NotServedError: for forward-mode derivatives and torch.jit.trace.
        ForeignError: for subclasses and nested tensors.
    """
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN:
            raise ForeignError(f"a {type(tensor).__name__} is not for these kernels")
        if tensor.is_nested:
            raise ForeignError("a nested tensor is not for these kernels")
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise NotServedError("torch.jit.trace records torch's own operators")
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        raise NotServedError("it has no forward-mode derivative")


def prepared(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Problem, Call]:
    """Problem and Call of 4-D arguments of `attention`.

    Raises:
        NotServedError: they are not right.
    """
    try:
        return prepare(_dense_rows(query), _dense_rows(key), _dense_rows(value), **options)
    except (TypeError, ValueError) as error:
        raise NotServedError(str(error)) from error


def choose(problem: Problem) -> str:
    """Name of the fused backend that runs the problem.

    Raises:
        NotServedError: there is none; torch's own operators are better than the reference then.
    """
    name = select(problem).NAME
    if name == reference.NAME:
        raise NotServedError(explain(problem).refusals())
    return name


def _is_dense_4d(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> bool:
    """Whether the shapes are those of `attention`, as nearly always."""
    if not query.dim() == key.dim() == value.dim() == 4:
        return False
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        return False
    return enable_gqa or query.shape[1] == key.shape[1] == value.shape[1]


def _to_4d(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool, masked: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """The three as [batch, heads, length, dim], and the leading dimensions of the result."""
    least = 3 if enable_gqa else 2
    if min(query.dim(), key.dim(), value.dim()) < least:
        raise NotServedError(f"query, key and value have at least {least} dimensions")
    leads = [tuple(x.shape[:-least]) for x in (query, key, value)]
    lead = _broadcast(leads)
    if masked and lead != leads[0] and _broadcast(leads[:2]) != lead:
        raise NotServedError("value alone enlarges the batch, which a mask cannot follow")
    if enable_gqa:
        batch, heads_q, heads_kv = lead, query.shape[-3], key.shape[-3]
        if value.shape[-3] != heads_kv:
            raise NotServedError("key and value have different numbers of heads")
    else:
        batch, heads_q = lead[:-1], lead[-1] if lead else 1
        # One head of key and value that all queries share needs no copies.
        shared = all(len(one) == 0 or one[-1] == 1 for one in leads[1:])
        heads_kv = 1 if shared else heads_q

    def folded(x: Tensor, heads: int) -> Tensor:
        if tuple(x.shape[:-2]) != (*batch, heads):
            x = x.expand(*batch, heads, *x.shape[-2:])
        if len(batch) < 2:
            return x if batch else x.unsqueeze(0)
        return x.reshape(math.prod(batch), *x.shape[-3:])

    lead = (*batch, heads_q) if lead or enable_gqa else ()
    return folded(query, heads_q), folded(key, heads_kv), folded(value, heads_kv), lead


def _broadcast(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """torch.broadcast_shapes with an error that compiled code can catch."""
    if all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    rank = max(map(len, shapes))
    joint = [1] * rank
    for shape in shapes:
        for dim, size in enumerate(shape, rank - len(shape)):
            if size != 1 and joint[dim] not in (1, size):
                raise NotServedError(f"leading dimensions do not broadcast: {shapes}")
            joint[dim] = size if joint[dim] == 1 else joint[dim]
    return tuple(joint)


def _foldable(mask: Tensor, lead: tuple[int, ...] | None) -> Tensor:
    """A mask that broadcasts to [*lead, len_q, len_k] as one that does to 4 dimensions."""
    rank = 4 if lead is None else len(lead) + 2
    if not 2 <= mask.dim() <= rank:
        raise NotServedError(f"the mask must have 2 to {rank} dimensions, got {mask.dim()}")
    if rank <= 4 or lead is None:
        return mask
    mask = mask[(None,) * (rank - mask.dim())]
    batch = lead[:-1]
    if any(size not in (1, wanted) for size, wanted in zip(mask.shape, batch, strict=False)):
        raise NotServedError(f"the mask does not broadcast to the batch {batch}")
    if any(size != 1 for size in mask.shape[:-3]):
        mask = mask.expand(*batch, *mask.shape[-3:])
    return mask.reshape(math.prod(mask.shape[:-3]), *mask.shape[-3:])


def mask_options(mask: Tensor, query: Tensor, key: Tensor) -> dict[str, Any]:
    """A mask of scaled_dot_product_attention as arguments of `attention`.

    Args:
        mask: broadcasts to [batch, heads, len_q, len_k]; bool, True is visible, or floating point.
        query: [batch, heads, len_q, head_dim].
        key: [batch, kv heads, len_k, head_dim].
    """
    scores = (*query.shape[:3], key.shape[2])
    seen = recognize(mask, scores)
    if seen is not None:
        return seen._asdict()
    if not broadcasts(mask, scores):
        raise NotServedError(f"the mask does not broadcast to the scores {list(scores)}")
    mask = broadcast_to_4d(mask)
    if mask.dtype == torch.bool:
        if not torch.compiler.is_compiling():
            mask = without_copies(mask)
        bias = torch.zeros_like(mask, dtype=query.dtype)
        return {"bias": bias.masked_fill_(mask.logical_not(), -torch.inf)}
    casts = autocast_enabled(query.device.type)  # torch casts the mask to query's dtype then
    if mask.dtype not in (query.dtype, torch.float32) and not casts:
        raise NotServedError(f"a mask is bool, float32 or like query, not {mask.dtype}")
    return {"bias": mask}


def _dense_rows(tensor: Tensor) -> Tensor:
    """The tensor with a contiguous last dimension."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()
