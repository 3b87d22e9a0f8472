"""flash_attn 2's attention to a cache of keys and values."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from fused_attention.compat.attend import Features
from fused_attention.compat.cached_attention import Queries, Rotary, attend_to_cache
from fused_attention.compat.conventions import Window
from fused_attention.compat.kv_cache import Cache, NewTokens


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention to a cache of keys and values, appending new ones to it first. No gradients.

    Args:
        q: [batch, seqlen_q, heads, head_dim].
        k_cache: [rows, capacity, heads_k, head_dim]; with block_table
            [pages, page_size, heads_k, head_dim], any page size. Written to if k is given.
        v_cache: like k_cache, with head_dim_v.
        k: [batch, seqlen_new, heads_k, head_dim], written behind the cached tokens.
        v: like k, with head_dim_v.
        rotary_cos, rotary_sin: [positions, rotary_dim / 2]. k is turned by its positions, token n
            by cache_seqlens + n; q likewise if causal or with a window, else all of it by
            cache_seqlens. Only with k and v.
        cache_seqlens: how many tokens are cached, without the new ones: an int or integer [batch].
            Default: the cache is full.
        cache_batch_idx: integer [batch], the row of the cache that each sequence uses. With
            duplicates it is open whose k and v stay.
        cache_leftpad: integer [batch], where in its row each sequence begins.
        block_table: integer [batch, pages of a sequence], the pages of each sequence in order.
        softmax_scale, causal, window_size, softcap, alibi_slopes: as in `flash_attn_func`; seqlen_k
            is what the cache holds after k, without the left padding.
        rotary_interleaved: turn neighbours (GPT-J); False: halves (GPT-NeoX).
        num_splits: accepted; the backends choose by themselves.
        return_softmax_lse: also return lse.

    Returns:
        out [batch, seqlen_q, heads, head_dim_v]; with return_softmax_lse also
        lse [batch, heads, seqlen_q].

    Raises:
        TypeError, ValueError: as `fused_attention.attention`; cache and new tokens do not fit.
        RuntimeError: a sequence is longer than its pages.
    """
    cache = Cache(k_cache, v_cache, cache_seqlens, cache_batch_idx, cache_leftpad, block_table)
    options = Features(0.0, softmax_scale, causal, window_size, softcap, alibi_slopes).options()
    # Entering no_grad where it holds already takes a good part of a small call.
    with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
        out, lse = attend_to_cache(
            Queries(q),
            cache,
            NewTokens.of(k, v),
            Rotary.of(rotary_cos, rotary_sin, rotary_interleaved),
            options,
        )
    return (out, lse) if return_softmax_lse else out
