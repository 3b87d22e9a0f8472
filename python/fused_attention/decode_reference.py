"""Decoding as a reference: stores, gathers and attends by plain torch operations, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_attention.masks import Band
from fused_attention.reference import attention_reference


def decode_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    cache_lengths: Tensor,
    cache_batch: Tensor | None = None,
    cache_starts: Tensor | None = None,
    block_table: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
    band: Band = Band.causal(),  # noqa: B008
    rotary_interleaved: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of queries to a cache after new keys and values were stored in it.

    Shapes as in `attention_with_kv_cache`. A rotated key is rounded to the cache's dtype, a rotated
    query is not. Never reads a number on the host; O(Lq * capacity) memory.

    Args:
        compute_dtype: of every step after the storing and of out. Default: fp32 for fp16 and bf16,
            else the query's dtype.

    Returns:
        out in the computed dtype, and lse.
    """
    low = query.dtype in (torch.float16, torch.bfloat16)
    compute = compute_dtype or (torch.float32 if low else query.dtype)
    query, total = query.to(compute), cache_lengths
    turn = rotary_cos, rotary_sin, cache_lengths, rotary_interleaved
    query = _rotated(query, *turn)
    if key is not None and value is not None:
        exact = torch.promote_types(key.dtype, torch.float32)
        key = _rotated(key.to(exact), *turn).to(key_cache.dtype)
        slots = cache_lengths[:, None] + torch.arange(key.shape[2], device=key.device)
        rows = torch.arange(len(slots), device=key.device) if cache_batch is None else cache_batch
        rows = rows[:, None].expand_as(slots)
        if block_table is not None:
            size = key_cache.shape[2]
            rows, slots = block_table.gather(1, (slots // size).long()), slots % size
        key_cache[rows, :, slots] = key.transpose(1, 2)
        value_cache[rows, :, slots] = value.transpose(1, 2)
        total = cache_lengths + key.shape[2]
    place = cache_batch, block_table, total
    keys, values = (_sequences(x, len(query), *place) for x in (key_cache, value_cache))
    bias = None
    if cache_starts is not None:
        position = torch.arange(keys.shape[2], device=keys.device)
        padding = (position < cache_starts[:, None])[:, None, :, None]
        keys, values = keys.masked_fill(padding, 0.0), values.masked_fill(padding, 0.0)
        bias = torch.zeros_like(padding, dtype=compute).masked_fill(padding, -torch.inf).mT
    return attention_reference(
        query,
        keys.to(compute),
        values.to(compute),
        band=band,
        scale=scale,
        softcap=softcap,
        bias=bias,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        kv_lengths=total,
        band_offsets=total - query.shape[2],
    )


def _rotated(
    x: Tensor, cos: Tensor | None, sin: Tensor | None, first: Tensor, interleaved: bool
) -> Tensor:
    """x [B, H, L, D] with row i turned by position first + i."""
    if cos is None or sin is None:
        return x
    positions = first[:, None] + torch.arange(x.shape[2], device=x.device)
    cos, sin = (table[positions].to(x.dtype).unsqueeze(1) for table in (cos, sin))
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    pair = turned.unflatten(-1, (-1, 2) if interleaved else (2, -1))
    x0, x1 = pair.unbind(-1 if interleaved else -2)
    both = x0 * cos - x1 * sin, x0 * sin + x1 * cos
    turned = torch.stack(both, -1).flatten(-2) if interleaved else torch.cat(both, -1)
    return torch.cat((turned, rest), -1)


def _sequences(
    cache: Tensor,
    batch: int,
    cache_batch: Tensor | None,
    block_table: Tensor | None,
    lengths: Tensor,
) -> Tensor:
    """The keys or values [B, Hkv, capacity, D] of each sequence; anything beyond its length."""
    if block_table is None:
        return cache[:batch] if cache_batch is None else cache[cache_batch]
    begins = torch.arange(block_table.shape[1], device=cache.device) * cache.shape[2]
    pages = torch.where(begins < lengths[:, None], block_table, 0)
    return cache[pages].transpose(1, 2).flatten(2, 3)
