"""Decoding: a few queries attend to a cache of keys and values that grows in place.

    fused_attention::decode(<fields of DecodeCall>, backend) -> (out, lse)

The operator stores the new keys and values in the caches, then attends. It has no gradient, and on
an accelerator it reads no number of a tensor on the host: it can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from fused_attention import dispatch
from fused_attention.backends import get
from fused_attention.backends.call import DecodeCall
from fused_attention.decode_checks import check_decode_values
from fused_attention.decode_problem import DecodeProblem
from fused_attention.masks import Band
from fused_attention.prepare import cast_contiguous, resolve_band, to_int32
from fused_attention.shortcut import watched

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fused_attention.options import DecodeOptions, Window

_library = torch.library.Library("fused_attention", "FRAGMENT")
_library.define(
    "decode(Tensor query, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor? key, "
    "Tensor? value, Tensor cache_lengths, Tensor? cache_batch, Tensor? cache_starts, "
    "Tensor? block_table, Tensor? rotary_cos, Tensor? rotary_sin, Tensor? alibi_slopes, "
    "Tensor? sinks, float scale, float softcap, SymInt left, SymInt right, "
    "bool rotary_interleaved, SymInt splits, bool batch_invariant, str backend) "
    "-> (Tensor out, Tensor lse)"
)
decode_op = torch.ops.fused_attention.decode.default


@overload
def attention_with_kv_cache(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[DecodeOptions],
) -> Tensor: ...


@overload
def attention_with_kv_cache(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    return_lse: Literal[True],
    **options: Unpack[DecodeOptions],
) -> tuple[Tensor, Tensor]: ...


def attention_with_kv_cache(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    key: Tensor | None = None,
    value: Tensor | None = None,
    cache_lengths: int | Tensor,
    cache_batch: Tensor | None = None,
    cache_starts: Tensor | None = None,
    block_table: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    rotary_interleaved: bool = False,
    causal: bool = True,
    window: Window | None = None,
    band: Band | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    splits: int | None = None,
    batch_invariant: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of new queries to a cache, which new keys and values are stored in first.

    The keys of a sequence are split into parts that are worked on at once and merged in a fixed
    order (flash decoding, Dao et al. 2023); the heads of a group share each key and value that is
    read. No gradients.

    Args:
        query: [B, Hq, Lq, D] in fp64, fp32, bf16 or fp16; Lq is 1 or, for chunks and speculative
            decoding, more. Any strides, last dimension contiguous, as of all tensors here.
        key_cache: [rows, Hkv, capacity, D], one row per sequence; with a block_table
            [pages, Hkv, page_size, D], any page size. Hkv divides Hq. What lies beyond the lengths
            may be NaN.
        value_cache: the same with Dv.
        key: [B, Hkv, new, D], stored in the cache from cache_lengths on; any number of new keys.
        value: [B, Hkv, new, Dv].
        cache_lengths: integer [B], how many keys each sequence has before the call, or one int for
            all of them.
        cache_batch: integer [B], the row of the cache that each sequence uses; default 0, 1, 2, ...
        cache_starts: integer [B], the first key that exists (left padding); default 0.
        block_table: integer [B, pages of a sequence], the pages of each sequence in order.
        rotary_cos: [positions, rotary_dim / 2] with rotary_sin: query i and new key i are rotated
            by position cache_lengths + i (RoFormer, Su et al. 2021). Needs key and value.
        rotary_sin: like rotary_cos.
        rotary_interleaved: pairs are neighbours (GPT-J) instead of the elements n and
            n + rotary_dim / 2 (GPT-NeoX).
        causal: no query sees a key after its diagonal, which ends at the sequence's last key.
        window: (left, right) keys visible before and after the diagonal; None is all. Keys that
            no query sees are not read.
        band: the mask as a Band with offset None, instead of causal and window.
        scale: default 1 / sqrt(D).
        softcap, alibi_slopes, sinks, return_lse: as in `attention`.
        splits: parts that the keys of the longest sequence are split into. Default: chosen.
        batch_invariant: a row's result does not depend on what else is in the batch.
        backend: name of the backend to use; default the first that can.

    Returns:
        out [B, Hq, Lq, Dv] in query's dtype and dimension order; with return_lse also
        lse [B, Hq, Lq] in fp32 (fp64 for fp64), natural log. A query that sees no key gives 0 and
        -inf, with a sink the sink.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong device, shape, layout or value; nothing was stored.
        RuntimeError: a gradient is asked for.
        NotImplementedError: the backend asked for cannot run this; the message says why.
    """
    problem, call = _prepare(
        query,
        key_cache,
        value_cache,
        key=key,
        value=value,
        cache_lengths=cache_lengths,
        cache_batch=cache_batch,
        cache_starts=cache_starts,
        block_table=block_table,
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        rotary_interleaved=rotary_interleaved,
        causal=causal,
        window=window,
        band=band,
        scale=scale,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        splits=splits,
        batch_invariant=batch_invariant,
    )
    args = (*call, dispatch.select(problem, backend).NAME)
    # A plain call skips the operator, which costs as much as a short step, not what is in it.
    if torch.compiler.is_compiling() or watched(args):
        out, lse = decode_op(*args)
    else:
        out, lse = _decode_autograd(*args, plain=True)
    return (out, lse) if return_lse else out


def explain_with_kv_cache(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    backend: str | None = None,
    return_lse: bool = False,
    **options: Any,
) -> dispatch.Explanation:
    """Which backend `attention_with_kv_cache` would run on, and why not the others.

    Takes its arguments; runs and stores nothing.

    Raises:
        TypeError, ValueError: as `attention_with_kv_cache`.
    """
    problem, _ = _prepare(query, key_cache, value_cache, **options)
    return dispatch.explain(problem, backend)


def _prepare(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    cache_lengths: int | Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    cache_batch: Tensor | None = None,
    cache_starts: Tensor | None = None,
    block_table: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    rotary_interleaved: bool = False,
    causal: bool = True,
    window: Window | None = None,
    band: Band | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    splits: int | None = None,
    batch_invariant: bool = False,
) -> tuple[DecodeProblem, DecodeCall]:
    """Check everything but the numbers inside tensors, and cast what the operator wants cast."""
    problem = DecodeProblem.from_tensors(
        query,
        key_cache,
        value_cache,
        key=key,
        value=value,
        cache_lengths=cache_lengths,
        cache_batch=cache_batch,
        cache_starts=cache_starts,
        block_table=block_table,
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        band=resolve_band(causal and band is None, window, band),
        scale=scale,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        splits=splits,
        batch_invariant=batch_invariant,
    )
    if not isinstance(cache_lengths, Tensor):
        cache_lengths = query.new_full((problem.batch,), cache_lengths, dtype=torch.int64)
    lengths = to_int32(cache_lengths)
    assert lengths is not None
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    as_is = rotary_cos is None or rotary_cos.dtype in (query.dtype, torch.float32)
    table_dtype = rotary_cos.dtype if rotary_cos is not None and as_is else wide
    call = DecodeCall(
        query,
        key_cache,
        value_cache,
        key if problem.len_new else None,
        value if problem.len_new else None,
        lengths,
        to_int32(cache_batch),
        to_int32(cache_starts),
        to_int32(block_table),
        cast_contiguous(rotary_cos, table_dtype),
        cast_contiguous(rotary_sin, table_dtype),
        cast_contiguous(alibi_slopes, torch.float32),
        cast_contiguous(sinks, wide),
        problem.scale,
        problem.softcap,
        problem.band.left,
        problem.band.right,
        rotary_interleaved,
        problem.splits,
        batch_invariant,
    )
    return problem, call


def _decode(*args: Any) -> tuple[Tensor, Tensor]:
    call = DecodeCall(*args[:-1])
    check_decode_values(call)
    return get(args[-1]).decode(call)


def _decode_fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = DecodeCall(*args[:-1])
    return call.empty_out(), call.empty_lse()


def _decode_autograd(*args: Any, plain: bool = False) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
        raise RuntimeError(
            "fused_attention::decode: a cache carries no gradients; call it under torch.no_grad()"
        )
    with torch._C._AutoDispatchBelowAutograd():
        results: tuple[Tensor, Tensor] = _decode(*args) if plain else decode_op(*args)
    if args[3] is not None:  # the new keys: autograd must see that the caches have changed
        torch.autograd.graph.increment_version(args[1:3])
    return results


_library.impl("decode", _decode, "CompositeExplicitAutograd")
_library.impl("decode", _decode_autograd, "Autograd")
torch.library.register_fake("fused_attention::decode", _decode_fake, lib=_library)
