"""flash-attn's S_dmask: which probabilities dropout took, for tests and for the curious.

An element's sign says whether it was kept; its size is exp(score - largest score of the row), so a
row divided by its sum is its softmax. The probabilities come out of attention itself, with
one-hot values that make every key a column of the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_attention.autocast import without_autocast
from fused_attention.compat.conventions import packed_places
from fused_attention.functional import attention, attention_varlen
from fused_attention.reference import dropout_keep_mask

_COLUMNS = 256  # keys per call: a value dim that every backend has


def dense_pattern(query: Tensor, key: Tensor, options: dict[str, Any], rng_state: Tensor) -> Tensor:
    """S_dmask [B, Hq, Lq, Lk] of `attention(query, key, ..., **options)`, in query's dtype."""
    batch, heads, len_q, _ = query.shape
    kv_heads, len_k = key.shape[1:3]
    dtype = torch.promote_types(query.dtype, torch.float32)
    probabilities = query.new_zeros((batch, heads, len_q, len_k), dtype=dtype)
    identity = torch.eye(len_k, dtype=dtype, device=query.device)
    with torch.no_grad(), without_autocast(query.device.type):
        for first in range(0, len_k, _COLUMNS):
            columns = identity[:, first : first + _COLUMNS].expand(batch, kv_heads, -1, -1)
            probabilities[..., first : first + _COLUMNS] = attention(
                query.to(dtype), key.to(dtype), columns, **_without_dropout(options)
            )
        return _signed(probabilities, options["dropout_p"], rng_state).to(query.dtype)


def packed_pattern(
    query: Tensor,
    key: Tensor,
    cu_seqlens: tuple[Tensor, Tensor],
    max_seqlens: tuple[int | None, int | None],
    options: dict[str, Any],
    rng_state: Tensor,
) -> Tensor:
    """S_dmask [sequences, Hq, max_seqlen_q, max_seqlen_k] of a packed batch; 0 in the padding."""
    cu_seqlens_q, cu_seqlens_k = cu_seqlens
    max_q, max_k = map(_longest, max_seqlens, cu_seqlens)
    sequences = len(cu_seqlens_q) - 1
    dtype = torch.promote_types(query.dtype, torch.float32)
    probabilities = query.new_zeros((sequences, query.shape[1], max_q, max_k), dtype=dtype)
    q_sequence, q_row = packed_places(len(query), cu_seqlens_q)
    exists = (q_sequence < sequences) & (q_row < max_q)
    q_place = q_sequence[exists], q_row[exists]
    k_row = packed_places(len(key), cu_seqlens_k)[1]
    with torch.no_grad(), without_autocast(query.device.type):
        for first in range(0, max_k, _COLUMNS):
            last = min(first + _COLUMNS, max_k)
            columns = k_row[:, None] == torch.arange(first, last, device=key.device)
            value = columns.to(dtype)[:, None].expand(-1, key.shape[1], -1)
            rows = attention_varlen(
                query.to(dtype), key.to(dtype), value, *cu_seqlens, **_without_dropout(options)
            )
            probabilities[q_place[0], :, q_place[1], first:last] = rows[exists]
        return _signed(probabilities, options["dropout_p"], rng_state).to(query.dtype)


def _longest(max_seqlen: int | None, cu_seqlens: Tensor) -> int:
    return int(cu_seqlens.diff().max()) if max_seqlen is None else max_seqlen


def _signed(probabilities: Tensor, dropout_p: float, rng_state: Tensor) -> Tensor:
    if probabilities.shape[-1] == 0:
        return probabilities
    largest = probabilities.amax(dim=-1, keepdim=True)
    relative = probabilities / torch.where(largest > 0, largest, 1.0)
    keep = dropout_keep_mask(rng_state, dropout_p, *probabilities.shape)
    return torch.where(keep, relative, -relative)


def _without_dropout(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "dropout_p": 0.0}
