"""The public functions: fill in defaults, have Problem check them, choose a backend, call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from torch import Tensor

from fused_attention import dispatch
from fused_attention.checks import check_tensor
from fused_attention.dispatch import Explanation
from fused_attention.masks import Band
from fused_attention.merge import merge_attention
from fused_attention.plain_calls import run_plain
from fused_attention.prepare import prepare, run

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fused_attention.options import DenseOptions, PackedOptions, Window

__all__ = ["attention", "attention_varlen", "explain", "merge_attention"]


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[DenseOptions],
) -> Tensor: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    return_lse: Literal[True],
    **options: Unpack[DenseOptions],
) -> tuple[Tensor, Tensor]: ...


def attention(
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
    dropout_seed: int | Tensor | None = None,
    dropout_offset: int = 0,
    kv_lengths: Tensor | None = None,
    band_offsets: Tensor | None = None,
    return_lse: bool = False,
    deterministic: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * query @ key^T) @ value in one kernel, without the [Lq, Lk] matrix in memory.

    The steps, in this order: scale, softcap, bias and ALiBi, mask, softmax (sinks in the
    denominator), dropout, times value. A query that sees no key gives 0 (its lse is -inf, or the
    sink) and has zero gradients. Differentiable twice in query, key, value, bias and sinks, also
    through lse. Under autocast, query, key, value and bias are cast as
    scaled_dot_product_attention casts them.

    Args:
        query: [B, Hq, Lq, D] in fp64, fp32, bf16 or fp16; any strides, last dimension contiguous.
        key: [B, Hkv, Lk, D]; Hkv divides Hq, query head h reads key head h // (Hq // Hkv).
        value: [B, Hkv, Lk, Dv].
        causal: no query sees a key after its diagonal; the last query's diagonal is the last key.
        window: (left, right) keys visible before and after the diagonal, which is visible too;
            None is all. With causal=True right must be None or 0.
        band: the mask as a Band, instead of causal and window; its offset moves the diagonal.
        scale: default 1 / sqrt(D).
        bias: added to the scores, floating point, [B|1, Hq|1, Lq|1, Lk|1].
        alibi_slopes: [Hq] or [B, Hq]; -slope * |i + offset - j| is added to the scores.
        softcap: scores become softcap * tanh(scores / softcap); 0 is none.
        sinks: [Hq], one more logit per row that has no value.
        dropout_p: chance in [0, 1) that a probability is dropped; kept ones are scaled up.
            Applied whenever it is above 0: the caller knows whether this is training.
        dropout_seed: the same seed and offset give the same mask on every backend. Default: drawn
            from torch's generator of query's device. An int64 tensor [2] holds seed and offset.
        dropout_offset: in [0, 2**32), one for each call that shares a seed.
        kv_lengths: integer [B], how many keys of each batch row exist; what lies beyond may be NaN.
        band_offsets: integer [B], replaces the band's offset row by row.
        return_lse: also return the log-sum-exp of the scores.
        deterministic: refuse backends whose results vary from run to run.
        backend: name of the backend to use; default the first that can.

    Returns:
        out [B, Hq, Lq, Dv] in query's dtype and dimension order; with return_lse also
        lse [B, Hq, Lq] in fp32 (fp64 for fp64), natural log.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong device, shape, layout or value.
        NotImplementedError: the backend asked for cannot run this; the message says why.
    """
    added = bias is not None or alibi_slopes is not None or sinks is not None
    if not added and kv_lengths is None and band_offsets is None:
        mask, numbers = (causal, window, band), (scale, softcap, dropout_p)
        plain = run_plain(query, key, value, mask, numbers, backend)
        if plain is not None:
            return plain if return_lse else plain[0]
    problem, call = prepare(
        query,
        key,
        value,
        causal=causal,
        window=window,
        band=band,
        scale=scale,
        bias=bias,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        sinks=sinks,
        dropout_p=dropout_p,
        kv_lengths=kv_lengths,
        band_offsets=band_offsets,
        deterministic=deterministic,
    )
    out, lse = run(problem, call, backend, dropout_seed, dropout_offset)
    return (out, lse) if return_lse else out


@overload
def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[PackedOptions],
) -> Tensor: ...


@overload
def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    return_lse: Literal[True],
    **options: Unpack[PackedOptions],
) -> tuple[Tensor, Tensor]: ...


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    causal: bool = False,
    window: Window | None = None,
    band: Band | None = None,
    scale: float | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    dropout_offset: int = 0,
    band_offsets: Tensor | None = None,
    return_lse: bool = False,
    deterministic: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention within each of B sequences that stand one after the other, without padding.

    Args:
        query: [Tq, Hq, D].
        key: [Tk, Hkv, D].
        value: [Tk, Hkv, Dv].
        cu_seqlens_q: integer [B + 1]; sequence b has the rows cu_seqlens_q[b] up to
            cu_seqlens_q[b + 1]. Starts at 0, never decreases, ends at or before Tq.
        cu_seqlens_k: the same for key and value; default cu_seqlens_q.
        max_seqlen_q: the longest query sequence, or more. Default Tq, which is always enough;
            GPU kernels launch fewer blocks when they know better.
        max_seqlen_k: the same for key and value.
        alibi_slopes: [Hq] or [B, Hq].
        band_offsets: integer [B], replaces the band's offset sequence by sequence.

    The other arguments are those of `attention`; the band's default offset is each sequence's own
    Lk - Lq.

    Returns:
        out [Tq, Hq, Dv] in query's dtype, 0 beyond the last sequence; with return_lse also
        lse [Hq, Tq], -inf there.

    Raises:
        TypeError, ValueError, NotImplementedError: as `attention`.
    """
    check_tensor("cu_seqlens_q", cu_seqlens_q)
    problem, call = prepare(
        query,
        key,
        value,
        causal=causal,
        window=window,
        band=band,
        scale=scale,
        alibi_slopes=alibi_slopes,
        softcap=softcap,
        sinks=sinks,
        dropout_p=dropout_p,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        band_offsets=band_offsets,
        deterministic=deterministic,
    )
    out, lse = run(problem, call, backend, dropout_seed, dropout_offset)
    return (out, lse) if return_lse else out


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    *,
    backend: str | None = None,
    dropout_seed: int | Tensor | None = None,
    dropout_offset: int = 0,
    return_lse: bool = False,
    **options: Any,
) -> Explanation:
    """Which backend these arguments would run on, and why not the others. Runs nothing.

    Takes the arguments of `attention` or, with cu_seqlens_q, of `attention_varlen`; tensors on the
    meta device need no memory but ask about that device.

    Returns:
        An Explanation: print it, or take `chosen`, `reasons` and `as_dict()`.

    Raises:
        TypeError, ValueError: as `attention`.
    """
    problem, _ = prepare(
        query, key, value, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, **options
    )
    return dispatch.explain(problem, backend)
