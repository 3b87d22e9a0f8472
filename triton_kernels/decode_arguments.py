"""From the fields of a step of decoding to the parameters that its kernels share, by name."""

from __future__ import annotations

from typing import Any

import torch

from .arguments import operand_arguments
from .scores import score_terms
from .tiles import cdiv, dot_precision, padded_dim

# Integers for which kernels are not compiled anew: see SIZES in arguments.py.
SIZES = (
    *("batch", "heads_q", "heads_kv", "group", "len_q", "len_new", "capacity", "page_size"),
    *("pages", "row_tiles", "splits", "left", "right", "alibi_batch", "rotary_half"),
)


def decode_arguments(call: Any) -> dict[str, Any]:
    """Parameters that the kernels share, by name; outputs are not among them."""
    batch, heads_q, len_q, _ = call.query.shape
    heads_kv = call.key_cache.shape[1]
    slopes, table, cos = call.alibi_slopes, call.block_table, call.rotary_cos
    terms = score_terms(call.scale, call.softcap, slopes is not None)
    return {
        **operand_arguments("query", call.query),
        **operand_arguments("key_cache", call.key_cache),
        **operand_arguments("value_cache", call.value_cache),
        "cache_lengths": call.cache_lengths,
        "cache_batch": call.cache_batch,
        "cache_starts": call.cache_starts,
        "block_table": table,
        "rotary_cos": cos,
        "rotary_sin": call.rotary_sin,
        "alibi_slopes": slopes,
        "sinks": call.sinks,
        "batch": batch,
        "heads_q": heads_q,
        "heads_kv": heads_kv,
        "group": heads_q // max(1, heads_kv),
        "len_q": len_q,
        "len_new": call.len_new,
        "capacity": call.capacity,
        "page_size": call.key_cache.shape[2],
        "pages": 0 if table is None else table.shape[1],
        "left": call.left,
        "right": call.right,
        "alibi_batch": heads_q if slopes is not None and slopes.dim() == 2 else 0,
        "rotary_half": 0 if cos is None else cos.shape[1],
        "scale": terms.scale,
        "exponent_scale": terms.exponent_scale,
        "unit": terms.unit,
        "softcap": call.softcap,
    }


def decode_constants(call: Any) -> dict[str, Any]:
    """What the kernels are compiled for."""
    head_dim, value_dim = call.query.shape[-1], call.value_cache.shape[-1]
    changed = call.alibi_slopes is not None
    return {
        "DIM": head_dim,
        "DIM_BLOCK": padded_dim(head_dim),
        "VALUE_DIM": value_dim,
        "VALUE_BLOCK": padded_dim(value_dim),
        "PART_DIM": cdiv(value_dim, 16) * 16,  # rows of parts begin at 16 bytes
        "IS_PAGED": call.block_table is not None,
        "IS_BATCH_INVARIANT": call.batch_invariant,
        "HAS_CACHE_BATCH": call.cache_batch is not None,
        "HAS_CACHE_STARTS": call.cache_starts is not None,
        "HAS_ROTARY": call.rotary_cos is not None and call.rotary_cos.shape[1] > 0,
        "IS_INTERLEAVED": call.rotary_interleaved,
        "HAS_ALIBI": changed,
        "HAS_SINKS": call.sinks is not None,
        "HAS_SOFTCAP": call.softcap != 0.0,
        "FOLD_SCALE": score_terms(call.scale, call.softcap, changed).fold_scale,
        "ACCURATE": call.query.dtype == torch.float32,
        "PRECISION": dot_precision(call.query),
    }
