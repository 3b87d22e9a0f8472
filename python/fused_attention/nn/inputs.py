"""What the arguments of MultiHeadAttention must be, as messages "argument: rule, got value"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_attention.checks import MAX_DROPOUT, check_tensor, shape_of, wrong_type, wrong_value
from fused_attention.nn.recognition import Shape
from fused_attention.nn.rotary import Rotary


def check_inputs(
    query: Any, key: Any, value: Any, features: tuple[int, int, int], batch_first: bool
) -> None:
    """Ranks, features, batches and lengths of the three inputs; for one that is all three, once."""
    q_width, k_width, v_width = features
    _check_input("query", query, q_width, batch_first, query)
    if key is not query or k_width != q_width:
        _check_input("key", key, k_width, batch_first, query)
    if value is not key or v_width != k_width:
        _check_input("value", value, v_width, batch_first, query)
    if value is not key and value.shape[:-1] != key.shape[:-1]:
        rule = f"must have key's batch and length {shape_of(key)[:-1]}"
        wrong_value("value", rule, shape_of(value)[:-1])
    if key is not query and query.dim() == 3:
        batch = 0 if batch_first else 1
        if key.shape[batch] != query.shape[batch]:
            wrong_value("key", f"must have query's batch {query.shape[batch]}", key.shape[batch])


def _check_input(argument: str, tensor: Any, width: int, batch_first: bool, query: Any) -> None:
    check_tensor(argument, tensor)
    if tensor.dim() not in (2, 3) or tensor.dim() != query.dim():
        order = "[batch, length, dim]" if batch_first else "[length, batch, dim]"
        rule = f"must be 3-D {order} or, like the others, 2-D [length, dim]"
        wrong_value(argument, rule, f"shape {shape_of(tensor)}")
    if tensor.shape[-1] != width:
        wrong_value(argument, f"must have {width} features", tensor.shape[-1])


def mask_to_4d(argument: str, mask: Tensor, scores: Shape) -> Tensor:
    """attn_mask or key_padding_mask, checked, as [batch|1, heads|1, len_q|1, len_k]."""
    check_tensor(argument, mask)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        wrong_type(argument, "must be bool (True is hidden) or floating point", mask.dtype)
    batch, heads, len_q, len_k = scores
    if argument == "key_padding_mask":
        if shape_of(mask) != (batch, len_k):
            wrong_value(argument, f"must have shape [{batch}, {len_k}]", f"shape {shape_of(mask)}")
        return mask.view(batch, 1, 1, len_k)
    if shape_of(mask) == (len_q, len_k):
        return mask[None, None]
    if shape_of(mask) != (batch * heads, len_q, len_k):
        rule = f"must have shape [{len_q}, {len_k}] or [{batch * heads}, {len_q}, {len_k}]"
        wrong_value(argument, rule, f"shape {shape_of(mask)}")
    return mask.view(batch, heads, len_q, len_k)


def check_sizes(
    embed_dim: int, num_heads: int, num_kv_heads: int, rotary: Rotary | None, dropout: float
) -> None:
    """What a module is built with."""
    for argument, size in (("embed_dim", embed_dim), ("num_heads", num_heads)):
        if size <= 0:
            wrong_value(argument, "must be above 0", size)
    if embed_dim % num_heads:
        wrong_value("embed_dim", f"must be divisible by num_heads {num_heads}", embed_dim)
    if num_kv_heads <= 0 or num_heads % num_kv_heads:
        wrong_value("num_kv_heads", f"must divide num_heads {num_heads}", num_kv_heads)
    if rotary is not None:
        rotary.check_head_dim(embed_dim // num_heads)
    if not 0.0 <= dropout < MAX_DROPOUT:
        wrong_value("dropout", "must be in [0, 1 - 2**-17)", dropout)
