"""Attention to a cache by the operator for decoding, where it can say what flash-attn asks for.

Nothing is gathered or copied then: pages, chosen rows and left padding are read where they lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fused_attention import decoding, log
from fused_attention.compat.conventions import can_read, last_contiguous
from fused_attention.compat.kv_cache import check_pages, longest, read_lengths
from fused_attention.compat.logged import DOOR
from fused_attention.compat.rotation import dense_positions
from fused_attention.decode_problem import PREFILL

if TYPE_CHECKING:
    from fused_attention.compat.cached_attention import Queries, Rotary
    from fused_attention.compat.kv_cache import Cache, NewTokens


def decode_step(
    queries: Queries,
    cache: Cache,
    new: NewTokens | None,
    rotary: Rotary | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor] | None:
    """out [batch, seqlen, heads, head_dim_v] and lse [batch, heads, seqlen], or None.

    None means that the operator does not have it: packed queries or new tokens, qv, rotary
    positions of their own or one for all queries, sequences that share a row which grows; or that
    many queries on a plain cache are faster as an ordinary attention.

    Raises:
        TypeError, ValueError, RuntimeError: as `attend_to_cache`, by flash-attn's names.
    """
    q = queries.tensor
    packed = queries.cu_seqlens is not None or (new is not None and new.cu_seqlens is not None)
    # Without a band all queries are rotated by one position.
    moved = rotary is not None and (
        rotary.seqlens is not None or (options["band"].is_full and q.shape[1] > 1)
    )
    if packed or queries.qv is not None or moved or (new is not None and _repeats(cache)):
        return None
    batch, table, rows = queries.batch, cache.table, cache.batch_idx
    if q.shape[1] >= PREFILL and table is None and rows is None and cache.leftpad is None:
        return None
    if table is not None:
        table, rows = table[:batch] if rows is None else table[rows], None
    lengths = cache.capacity if cache.lengths is None else cache.lengths
    total = lengths if new is None else lengths + new.key.shape[1]
    most = longest(cache, read_lengths(cache, total))
    if table is not None:
        check_pages(cache, table, total, most)
    if rotary is not None and new is not None:
        for length in (q.shape[1], new.key.shape[1]):
            positions = batch, length, lengths, rotary.cos.shape[0]
            dense_positions(*positions, argument="cache_seqlens")
    operands = tuple(x.transpose(1, 2) for x in (last_contiguous(q), cache.key, cache.value))
    fresh = None if new is None else [last_contiguous(x).transpose(1, 2) for x in new[:2]]
    keywords: dict[str, Any] = {
        "key": None if fresh is None else fresh[0],
        "value": None if fresh is None else fresh[1],
        "cache_lengths": lengths,
        "cache_batch": rows,
        "cache_starts": cache.leftpad,
        "block_table": table,
        "rotary_cos": None if rotary is None else rotary.cos,
        "rotary_sin": None if rotary is None else rotary.sin,
        "rotary_interleaved": rotary is not None and rotary.interleaved,
        **{name: options[name] for name in ("band", "scale", "softcap", "alibi_slopes")},
    }
    if log.enabled:
        log.decoded(DOOR, *operands, **keywords)
    out, lse = decoding.attention_with_kv_cache(*operands, return_lse=True, **keywords)
    return out.transpose(1, 2), lse


def _repeats(cache: Cache) -> bool:
    """Whether two sequences are known to use one row: then it is open whose new tokens stay."""
    rows = cache.batch_idx
    return rows is not None and can_read(rows) and len(rows.unique()) < len(rows)
