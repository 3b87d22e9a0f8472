"""Attention of new queries to a cache of keys and values, which grows by new tokens first."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention.checks import wrong_value
from fused_attention.compat.conventions import (
    DENSE,
    PACKED,
    last_contiguous,
    wrong_shape,
)
from fused_attention.compat.decode_step import decode_step
from fused_attention.compat.kv_cache import (
    Cache,
    Lengths,
    NewTokens,
    append,
    cached_rows,
    check_cache,
    check_new,
    longest,
    one_length,
    read_lengths,
)
from fused_attention.compat.logged import attention
from fused_attention.compat.rotation import check_tables, dense_positions, packed_positions, rotate
from fused_attention.compat.spans import Spans, attend_spans, spans_of_rows, split_chunks


class Queries(NamedTuple):
    """The queries, all sequences of one length or packed."""

    tensor: Tensor  # [batch, seqlen, heads, head_dim]; with cu_seqlens [total, heads, head_dim]
    cu_seqlens: Tensor | None = None  # int [batch + 1]
    max_seqlen: int | None = None
    qv: Tensor | None = None  # queries to the values, [..., heads, head_dim_v]

    @property
    def batch(self) -> int:
        if self.cu_seqlens is None:
            return self.tensor.shape[0]
        return self.cu_seqlens.shape[0] - 1


class Rotary(NamedTuple):
    """The tables [positions, rotary_dim / 2] that turn queries and new keys."""

    cos: Tensor
    sin: Tensor
    interleaved: bool = True
    seqlens: Tensor | None = None  # position of the first new token; None: the cached length

    @classmethod
    def of(
        cls,
        cos: Tensor | None,
        sin: Tensor | None,
        interleaved: bool,
        seqlens: Tensor | None = None,
    ) -> Rotary | None:
        """The tables, or None where there are none."""
        if cos is None and sin is None:
            return None
        if cos is None or sin is None:
            name = "rotary_cos" if cos is None else "rotary_sin"
            wrong_value(name, "rotary_cos and rotary_sin must be given together", None)
        return cls(cos, sin, interleaved, seqlens)


def attend_to_cache(
    queries: Queries,
    cache: Cache,
    new: NewTokens | None,
    rotary: Rotary | None,
    options: dict[str, Any],
    attention_chunk: int = 0,
) -> tuple[Tensor, Tensor]:
    """Append the new tokens to the cache, in place, and attend to all that it then holds.

    Args:
        options: band, scale, softcap and alibi_slopes of `attention`. Rotary turns query i by
            position cached length + i; without a band all queries by position cached length.
        attention_chunk: see `split_chunks`; 0 is none.

    Returns:
        out like queries.tensor; lse [batch, heads, seqlen], packed [heads, total].
    """
    _check(queries, cache, new, rotary)
    if not attention_chunk:
        decoded = decode_step(queries, cache, new, rotary, options)
        if decoded is not None:
            return decoded
    numbers = read_lengths(cache, cache.lengths)
    lengths = one_length(cache.lengths, numbers)
    if new is not None and lengths is not None:
        if rotary is not None:
            same = options["band"].is_full and not attention_chunk
            queries, new = _rotate(queries, new, rotary, lengths, same)
        total = lengths + new.lengths()
        most = longest(cache, read_lengths(cache, total))
        append(cache, new, lengths)
        lengths = total
    else:
        most = longest(cache, numbers)
    dense = cache.leftpad is None and queries.cu_seqlens is None and not attention_chunk
    cut = dense and not isinstance(lengths, Tensor)  # else kv_lengths ends the rows
    key, value = cached_rows(cache, lengths, most, queries.batch, cut=cut)
    if queries.qv is not None:
        queries = queries._replace(tensor=torch.cat([queries.tensor, queries.qv], dim=-1))
        key = torch.cat([key, value], dim=-1)
    if dense:
        return _attend_dense(queries.tensor, key, value, lengths, options)
    spans = _spans(queries, cache, key.shape[1], lengths)
    if attention_chunk:
        spans = split_chunks(spans, attention_chunk)
    return attend_rows(queries, key, value, spans, options)


def _attend_dense(
    q: Tensor, key: Tensor, value: Tensor, lengths: Lengths, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    ragged: dict[str, Any] = {}
    if isinstance(lengths, Tensor):
        ragged["kv_lengths"] = lengths
        if not options["band"].is_full or options["alibi_slopes"] is not None:
            ragged["band_offsets"] = lengths - q.shape[1]
    query, key, value = (
        last_contiguous(q).transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
    )
    out, lse = attention(query, key, value, return_lse=True, **ragged, **options)
    return out.transpose(1, 2), lse


def attend_rows(
    queries: Queries, key: Tensor, value: Tensor, spans: Spans, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Attention of spans of the queries to spans of key and value [rows, tokens, heads_k, dim].

    Returns:
        out like queries.tensor; lse [batch, heads, seqlen], packed [heads, total].
    """
    q, max_seqlen_q = queries.tensor, queries.max_seqlen
    shape = q.shape[:2]
    dense = queries.cu_seqlens is None
    if dense:
        q, max_seqlen_q = q.flatten(0, 1), shape[1]
    keys = key.flatten(0, 1), value.flatten(0, 1)
    q = last_contiguous(q)
    out, lse = attend_spans(q, *keys, spans, max_seqlen_q=max_seqlen_q, **options)
    if dense:
        out, lse = out.unflatten(0, shape), lse.unflatten(1, shape).transpose(0, 1)
    return out, lse


def _spans(queries: Queries, cache: Cache, capacity: int, lengths: Lengths) -> Spans:
    """Where queries and keys of each sequence stand, all rows laid one after the other."""
    batch, device = queries.batch, queries.tensor.device
    if queries.cu_seqlens is None:
        q_begin, q_end = spans_of_rows(batch, queries.tensor.shape[1], device)
    else:
        q_begin, q_end = queries.cu_seqlens[:-1], queries.cu_seqlens[1:]
    row_begin, row_end = spans_of_rows(batch, capacity, device)
    k_begin = row_begin if cache.leftpad is None else row_begin + cache.leftpad
    k_end = row_end if lengths is None else row_begin + lengths
    return Spans(q_begin, q_end, k_begin, k_end)


def _rotate(
    queries: Queries, new: NewTokens, rotary: Rotary, lengths: int | Tensor, same: bool
) -> tuple[Queries, NewTokens]:
    """Queries and new keys turned by the angles of their positions."""
    first = lengths if rotary.seqlens is None else rotary.seqlens
    name = "cache_seqlens" if rotary.seqlens is None else "rotary_seqlens"

    def turned(tensor: Tensor, cu_seqlens: Tensor | None, same: bool) -> Tensor:
        positions: slice | Tensor
        rows, total = rotary.cos.shape[0], tensor.shape[0]
        if cu_seqlens is None:
            length = tensor.shape[1]
            positions = dense_positions(total, length, first, rows, same=same, argument=name)
        else:
            positions = packed_positions(total, first, cu_seqlens, rows, same=same, argument=name)
        return rotate(tensor, rotary.cos, rotary.sin, positions, interleaved=rotary.interleaved)

    q = turned(queries.tensor, queries.cu_seqlens, same)
    key = turned(new.key, new.cu_seqlens, False)
    return queries._replace(tensor=q), new._replace(key=key)


def _check(queries: Queries, cache: Cache, new: NewTokens | None, rotary: Rotary | None) -> None:
    """What attention itself would not find, or would call by names that the caller never used."""
    dense = queries.cu_seqlens is None
    if not isinstance(queries.tensor, Tensor) or queries.tensor.dim() != (4 if dense else 3):
        wrong_shape("q", DENSE if dense else PACKED, queries.tensor)
    check_cache(cache, queries.batch)
    if new is not None:
        check_new(new, cache, queries.batch)
    if rotary is not None:
        if new is None:
            wrong_value("rotary_cos", "needs the new k and v, whose positions it turns", "k=None")
        check_tables(queries.tensor, rotary.cos, rotary.sin)
