"""From the arguments of the public functions to a checked Problem and the operator's Call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_attention import checks
from fused_attention.autocast import lowered
from fused_attention.autograd import attend
from fused_attention.backends.call import Call
from fused_attention.dispatch import select
from fused_attention.masks import UNBOUNDED, Band
from fused_attention.options import Window
from fused_attention.problem import Problem

_FULL = Band.full()
_CAUSAL = Band.causal()


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    window: Window | None = None,
    band: Band | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    kv_lengths: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    band_offsets: Tensor | None = None,
    deterministic: bool = False,
) -> tuple[Problem, Call]:
    """Check everything and cast what the operator wants cast; the Call has no rng_state yet.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong device, shape, layout or value.
    """
    query, key, value, bias = lowered(query, key, value, bias)
    band = resolve_band(causal, window, band)
    if cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens_q
        max_seqlen_k = max_seqlen_q if max_seqlen_k is None else max_seqlen_k
    problem = Problem.from_tensors(
        query,
        key,
        value,
        band=band,
        scale=scale,
        softcap=softcap,
        bias=bias,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        dropout_p=dropout_p,
        kv_lengths=kv_lengths,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        band_offsets=band_offsets,
        deterministic=deterministic,
    )
    self_attention = cu_seqlens_k is cu_seqlens_q
    cu_seqlens_q = to_int32(cu_seqlens_q)
    cu_seqlens_k = cu_seqlens_q if self_attention else to_int32(cu_seqlens_k)
    band_offsets = to_int32(band_offsets)
    offset = band.offset
    if offset is None and cu_seqlens_q is None:
        offset = problem.len_k - problem.len_q
    elif offset is None and band_offsets is None:
        band_offsets = _packed_offsets(problem, cu_seqlens_q, cu_seqlens_k)
    call = Call(
        query,
        key,
        value,
        bias,
        cast_contiguous(alibi_slopes, torch.float32),
        cast_contiguous(sinks, torch.float64 if query.dtype == torch.float64 else torch.float32),
        to_int32(kv_lengths),
        cu_seqlens_q,
        cu_seqlens_k,
        band_offsets,
        None,
        problem.len_q,
        problem.len_k,
        problem.scale,
        problem.softcap,
        band.left,
        band.right,
        0 if offset is None else offset,
        problem.dropout_p,
        problem.deterministic,
    )
    return problem, call


def run(
    problem: Problem, call: Call, backend: str | None, dropout_seed: Any, dropout_offset: Any
) -> tuple[Tensor, Tensor]:
    """Choose the backend, settle the dropout's state and call the operator: out and lse."""
    chosen = select(problem, backend)
    if problem.dropout_p:
        device = call.query.device
        call = call._replace(rng_state=_rng_state(dropout_seed, dropout_offset, device))
    return attend(call, chosen.NAME, problem.needs_grad)


def resolve_band(causal: bool, window: Any, band: Any) -> Band:
    """The one mask that causal, window and band ask for."""
    if band is not None:
        if not isinstance(band, Band):
            checks.wrong_type("band", "must be a Band", type(band).__name__)
        if causal or window is not None:
            got = f"causal={causal}, window={window}"
            checks.wrong_value("band", "excludes causal and window", got)
        return band
    if window is None:
        return _CAUSAL if causal else _FULL
    rule = "must be a pair (left, right), each None or an int in [0, 2**30]"
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        checks.wrong_type("window", rule, window)
    for end in window:
        if end is None:
            continue
        if isinstance(end, bool) or not isinstance(end, int):
            checks.wrong_type("window", rule, window)
        if not 0 <= end <= UNBOUNDED:
            checks.wrong_value("window", rule, window)
    left, right = window
    if causal:
        if right is not None and right > 0:
            checks.wrong_value("window", "right must be None or 0 with causal=True", right)
        right = 0
    return Band.window(left, right)


def _packed_offsets(
    problem: Problem, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None
) -> Tensor | None:
    """Lk - Lq of each sequence; None where it is 0 or does not matter."""
    assert cu_seqlens_q is not None and cu_seqlens_k is not None
    matters = problem.has_alibi or not problem.band.is_full
    if not matters or cu_seqlens_k is cu_seqlens_q:
        return None
    return cu_seqlens_k.diff() - cu_seqlens_q.diff()


def cast_contiguous(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The small tensors are contiguous, so kernels take them by their pointer alone."""
    return None if tensor is None else tensor.to(dtype).contiguous()


def to_int32(tensor: Tensor | None) -> Tensor | None:
    """int32, saturating: a number that would wrap stays out of every range that is checked."""
    if tensor is not None and tensor.dtype == torch.int64:
        tensor = tensor.clamp(-UNBOUNDED - 1, UNBOUNDED + 1)
    return cast_contiguous(tensor, torch.int32)


def _rng_state(seed: Any, offset: Any, device: torch.device) -> Tensor:
    """int64 [2] on the problem's device, so that reading it never stalls a stream."""
    checks.check_dropout_state(seed, offset, device)
    if isinstance(seed, Tensor):
        return seed.contiguous()
    if seed is None:
        # 64 random bits, half of them in the offset: one draw on the device, no copy to it.
        return torch.randint(0, 1 << 32, (2,), dtype=torch.int64, device=device)
    return torch.tensor([seed, offset], dtype=torch.int64, device=device)
