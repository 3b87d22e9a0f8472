"""`attention` and `attention_varlen`, reporting who serves them where `log` was asked to."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fused_attention import functional, log

DOOR = "flash_attn"


def attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
    """`fused_attention.attention`."""
    if log.enabled:
        log.attended(DOOR, query, key, value, **options)
    return functional.attention(query, key, value, **options)


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    **options: Any,
) -> Any:
    """`fused_attention.attention_varlen`."""
    if log.enabled and cu_seqlens_q is not None:
        log.attended(DOOR, query, key, value, cu_seqlens_q, cu_seqlens_k, **options)
    return functional.attention_varlen(query, key, value, cu_seqlens_q, cu_seqlens_k, **options)
