"""The steps of multi-head attention, which modules and drop-in functions share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fused_attention import log
from fused_attention.autocast import without_autocast
from fused_attention.functional import attention
from fused_attention.nn.attention_weights import each_heads_weights, mean_weights
from fused_attention.nn.mask_terms import MaskTerms


class Projection(NamedTuple):
    """The parameters of the input projections as nn.MultiheadAttention names them."""

    in_proj_weight: Tensor | None  # query's, key's and value's, one below the other
    in_proj_bias: Tensor | None
    q_proj_weight: Tensor | None  # the three of them instead of in_proj_weight
    k_proj_weight: Tensor | None
    v_proj_weight: Tensor | None

    def heads(
        self, query: Tensor, key: Tensor, value: Tensor, head_dim: int, sizes: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as `sizes` projected heads; one product where inputs are one.

        Args:
            query, key, value: [batch, length, features], or length first.

        Returns:
            [batch, length, heads, head_dim], or length first; views of the products.
        """
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if weight is not None and query is key and key is value:
            q, k, v = _split(F.linear(query, weight, bias), head_dim).split(sizes, 2)
            return q, k, v
        features = [size * head_dim for size in sizes]
        if weight is not None and key is value:
            at = features[0]
            biases = (None, None) if bias is None else (bias[:at], bias[at:])
            q = _split(F.linear(query, weight[:at], biases[0]), head_dim)
            k, v = _split(F.linear(key, weight[at:], biases[1]), head_dim).split(sizes[1:], 2)
            return q, k, v
        weights: tuple[Any, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = weights if weight is None else weight.split(features)
        rows: tuple[Any, ...] = (None, None, None) if bias is None else bias.split(features)
        inputs = zip((query, key, value), weights, rows, strict=True)
        q, k, v = (_split(F.linear(*one), head_dim) for one in inputs)
        return q, k, v


def heads_first(x: Tensor, batch_first: bool) -> Tensor:
    """[batch, length, heads, dim] (or length first) as the view [batch, heads, length, dim]."""
    return x.transpose(1, 2) if batch_first else x.permute(1, 2, 0, 3)


def join_heads(x: Tensor, batch_first: bool) -> Tensor:
    """[batch, heads, length, dim] as [batch, length, heads * dim], or length first."""
    return (x.transpose(1, 2) if batch_first else x.permute(2, 0, 1, 3)).flatten(2)


def with_batch(query: Tensor, key: Tensor, value: Tensor, dim: int) -> tuple[Tensor, ...]:
    """The three with a batch of 1; what is one tensor stays one."""
    q = query.unsqueeze(dim)
    k = q if key is query else key.unsqueeze(dim)
    v = k if value is key else value.unsqueeze(dim)
    return q, k, v


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: MaskTerms,
    *,
    door: str,
    bias_k: Tensor | None = None,
    bias_v: Tensor | None = None,
    zero_key: bool = False,
    dropout_p: float = 0.0,
    need_weights: bool = False,
    average_weights: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Attention over heads, with nn.MultiheadAttention's additional keys and its weights.

    Args:
        query: [B, Hq, Lq, D].
        key: [B, Hkv, Lk, D].
        value: [B, Hkv, Lk, D].
        door: the name under which the call is logged.
        bias_k: [1, 1, Hkv * D], a key that every query sees, with the value `bias_v`.
        zero_key: one more key of zeros with a value of zeros.

    Returns:
        out [B, Hq, Lq, D] and, with need_weights, the weights before dropout, [B, Lq, Lk'] (with
        average_weights=False [B, Hq, Lq, Lk']); Lk' counts the additional keys, at the end.
    """
    if bias_k is not None and bias_v is not None:
        scores = (*query.shape[:3], key.shape[2])
        terms = terms.with_key_in_front(scores, query.dtype, query.device)
        key, value = _in_front(bias_k, key), _in_front(bias_v, value)
    band, kv_lengths, bias = terms
    options: dict[str, Any] = {
        "band": band,
        "kv_lengths": kv_lengths,
        "bias": bias,
        # A sink is a key with a score and no value.
        "sinks": query.new_zeros(query.shape[1]) if zero_key else None,
        "dropout_p": dropout_p,
    }
    if log.enabled:
        log.attended(door, query, key, value, **options)
    if not need_weights:
        return attention(query, key, value, **options), None
    out, lse = attention(query, key, value, return_lse=True, **options)
    hidden = terms.hidden(query.shape[2], key.shape[2], query.device)
    find = mean_weights if average_weights else each_heads_weights
    with without_autocast(query.device.type):  # lse is exact, the scores must be so too
        weights = find(query, key, lse, query.shape[-1] ** -0.5, bias, hidden)
    if bias_k is not None:
        weights = weights.roll(-1, -1)
    if zero_key:
        unused = torch.exp(-lse)
        unused = unused.mean(1) if average_weights else unused
        weights = torch.cat((weights, unused.unsqueeze(-1)), -1)
    return out, weights.to(query.dtype)


def _in_front(extra: Tensor, x: Tensor) -> Tensor:
    """[1, 1, heads * dim] as the first key of [batch, heads, length, dim]."""
    batch, heads, _, dim = x.shape
    return torch.cat((extra.view(1, heads, 1, dim).expand(batch, -1, -1, -1).to(x.dtype), x), 2)


def _split(x: Tensor, head_dim: int) -> Tensor:
    return x.view(*x.shape[:-1], x.shape[-1] // head_dim, head_dim)
