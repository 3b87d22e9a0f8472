"""One call of torch's multi_head_attention_forward on this package's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_attention.integrations.sdpa_call import NotServedError, check_servable, choose
from fused_attention.nn.inputs import check_inputs
from fused_attention.nn.mask_terms import mask_terms
from fused_attention.nn.multi_head import (
    Projection,
    attend,
    heads_first,
    join_heads,
    with_batch,
)
from fused_attention.problem import Problem


def attend_multi_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Tensor:
    """The arguments and the first result of F.multi_head_attention_forward.

    Raises:
        NotServedError: torch's own function has to serve the call, or to refuse it.
    """
    if need_weights:
        raise NotServedError("need_weights=True asks for the weights; convert() serves that too")
    if static_k is not None or static_v is not None:
        raise NotServedError("static_k and static_v come projected")
    if attn_mask is None and is_causal:
        raise NotServedError("is_causal needs attn_mask")
    weight = None if use_separate_proj_weight else in_proj_weight
    parts = Projection(weight, in_proj_bias, q_proj_weight, k_proj_weight, v_proj_weight)
    check_servable(query, key, value, attn_mask, key_padding_mask, out_proj_weight, *parts)
    try:
        head_dim = _head_dim(query, embed_dim_to_check, num_heads)
        check_inputs(query, key, value, _features(parts, embed_dim_to_check), batch_first=False)
        batched = query.dim() == 3
        if not batched:
            query, key, value = with_batch(query, key, value, 1)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        projected = parts.heads(query, key, value, head_dim, (num_heads,) * 3)
        q, k, v = (heads_first(x, batch_first=False) for x in projected)
        terms = mask_terms(
            (*q.shape[:3], k.shape[2]),
            q.dtype,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            is_causal=is_causal,
        )
        heads, _ = attend(
            q,
            k,
            v,
            terms,
            door="nn.MultiheadAttention",
            bias_k=bias_k,
            bias_v=bias_v,
            zero_key=add_zero_attn,
            dropout_p=dropout_p if training else 0.0,
        )
    except (TypeError, ValueError) as error:
        raise NotServedError(str(error)) from error
    out = torch.nn.functional.linear(
        join_heads(heads, batch_first=False), out_proj_weight, out_proj_bias
    )
    return out if batched else out.squeeze(1)


def _head_dim(query: Tensor, embed_dim: int, num_heads: int) -> int:
    """Features of a head, if a fused kernel takes heads of this size."""
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim: must be divisible by {num_heads}, got {embed_dim}")
    head_dim = embed_dim // num_heads
    sizes = (1, num_heads, num_heads, 1, 1, head_dim, head_dim)
    choose(Problem(query.dtype, query.device.type, *sizes))
    return head_dim


def _features(parts: Projection, embed_dim: int) -> tuple[int, int, int]:
    """What the projections take, of query, key and value."""
    if parts.k_proj_weight is None or parts.v_proj_weight is None:
        return embed_dim, embed_dim, embed_dim
    return embed_dim, parts.k_proj_weight.shape[1], parts.v_proj_weight.shape[1]
