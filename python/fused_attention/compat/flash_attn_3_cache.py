"""flash-attn 3's attention to a cache of keys and values, and its helpers."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_attention.compat.attend import Features, no_fp8
from fused_attention.compat.cached_attention import Queries, Rotary, attend_to_cache
from fused_attention.compat.conventions import Window, as_int, wrong_shape
from fused_attention.compat.kv_cache import Cache, NewTokens


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention to a cache of keys and values, appending new ones to it first. No gradients.

    Args:
        q: [batch, seqlen_q, heads, head_dim]; with cu_seqlens_q [total_q, heads, head_dim].
        k_cache: [rows, capacity, heads_k, head_dim]; with page_table
            [pages, page_size, heads_k, head_dim], any page size. Written to if k is given.
        v_cache: like k_cache, with head_dim_v.
        k: [batch, seqlen_new, heads_k, head_dim]; with cu_seqlens_k_new
            [total_new, heads_k, head_dim]. Written behind the cached tokens.
        v: like k, with head_dim_v.
        qv: like q, with head_dim_v; qv @ v^T is added to q @ k^T. Copies the cache.
        cache_batch_idx: integer [batch], the row of the cache, or of page_table, that each sequence
            uses.
        page_table: integer [rows, pages of a sequence], the pages of each row in order.
        cu_seqlens_q, max_seqlen_q: queries of several lengths, as in `flash_attn_varlen_func`.
        cu_seqlens_k_new: the same for k and v.
        rotary_seqlens: integer [batch], the position of the first new token; default cache_seqlens.

    The others are those of flash_attn 2's function of this name and of `flash_attn_func`.

    Returns:
        out like q, with head_dim_v; with return_softmax_lse (out, lse [batch, heads, seqlen_q] or
        [heads, total_q], and two empty tensors where the original has its partial results).
    """
    no_fp8(q_descale, k_descale, v_descale)
    options = Features(0.0, softmax_scale, causal, window_size, softcap).options()
    with torch.no_grad():
        out, lse = attend_to_cache(
            Queries(q, cu_seqlens_q, as_int(max_seqlen_q), qv),
            Cache(
                k_cache,
                v_cache,
                cache_seqlens,
                cache_batch_idx,
                cache_leftpad,
                page_table,
                "page_table",
            ),
            NewTokens.of(k, v, cu_seqlens_k_new),
            Rotary.of(rotary_cos, rotary_sin, rotary_interleaved, rotary_seqlens),
            options,
            attention_chunk,
        )
    return (out, lse, out.new_empty(0), lse.new_empty(0)) if return_softmax_lse else out


def flash_attn_combine(
    out_partial: Tensor,
    lse_partial: Tensor,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Merge the attentions of the same queries over disjoint sets of keys.

    Args:
        out_partial: [splits, batch, seqlen, heads, head_dim] in fp32 (or fp64).
        lse_partial: [splits, batch, seqlen, heads]; -inf where a split has no key.
        out: where to write; default a new tensor.
        out_dtype: of the result; default out_partial's.

    Returns:
        out [batch, seqlen, heads, head_dim] and lse [batch, seqlen, heads].
    """
    if out_partial.dim() != 5:
        wrong_shape("out_partial", "[splits, batch, seqlen, heads, head_dim]", out_partial)
    if lse_partial.shape != out_partial.shape[:-1]:
        rule = f"of one number per row of out_partial, {list(out_partial.shape[:-1])}"
        wrong_shape("lse_partial", rule, lse_partial)
    lse = lse_partial.logsumexp(dim=0)
    share = (lse_partial - lse.masked_fill(lse == -torch.inf, 0.0)).exp()
    merged = (share.unsqueeze(-1) * out_partial).sum(dim=0)
    if out is None:
        return merged.to(out_dtype or out_partial.dtype), lse
    return out.copy_(merged), lse


def get_scheduler_metadata(
    batch_size: int,
    max_seqlen_q: int,
    max_seqlen_k: int,
    num_heads_q: int,
    num_heads_kv: int,
    headdim: int,
    cache_seqlens: Tensor,
    qkv_dtype: torch.dtype = torch.bfloat16,
    headdim_v: int | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_size: int | None = None,
    max_seqlen_k_new: int = 0,
    causal: bool = False,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    has_softcap: bool = False,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> Tensor:
    """What flash_attn_with_kvcache takes as scheduler_metadata and ignores: an empty tensor."""
    return cache_seqlens.new_empty(0, dtype=torch.int32)
