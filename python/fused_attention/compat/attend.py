"""The call of attention behind all of flash-attn's functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention.compat.conventions import (
    Window,
    as_int,
    band_of,
    draw_rng_state,
    heads_first,
    packed,
)
from fused_attention.compat.dropout_pattern import dense_pattern, packed_pattern
from fused_attention.compat.logged import attention, attention_varlen

Pair = tuple[Tensor, Tensor]


class Features(NamedTuple):
    """What the flash_attn functions share besides their tensors, in the order of arguments."""

    dropout_p: float = 0.0
    softmax_scale: float | None = None
    causal: bool = False
    window_size: Window = (-1, -1)
    softcap: float = 0.0
    alibi_slopes: Tensor | None = None
    deterministic: bool = False

    def options(self) -> dict[str, Any]:
        """The same as keywords of `attention` and `attention_varlen`."""
        return {
            "band": band_of(self.causal, self.window_size),
            "scale": self.softmax_scale,
            "softcap": max(self.softcap, 0.0),  # what is below 0 turns it off, too
            "alibi_slopes": self.alibi_slopes,
            "dropout_p": self.dropout_p,
            "deterministic": self.deterministic,
        }


class Forward(NamedTuple):
    """What the functions of flash_attn's low level return."""

    out: Tensor
    lse: Tensor
    pattern: Tensor  # S_dmask; no elements unless it was asked for and there is dropout
    rng_state: Tensor  # int64 [2]


def attend(q: Tensor, k: Tensor, v: Tensor, features: Features) -> Tensor:
    """Attention on [batch, seqlen, heads, head_dim] in flash-attn's terms: out."""
    query, key, value = heads_first("q", q), heads_first("k", k), heads_first("v", v)
    out: Tensor = attention(query, key, value, **features.options())
    return out.transpose(1, 2)


def dense_forward(
    q: Tensor, k: Tensor, v: Tensor, features: Features, with_pattern: bool
) -> Forward:
    """`attend` with everything that a forward pass can tell."""
    query, key, value = heads_first("q", q), heads_first("k", k), heads_first("v", v)
    options = features.options()
    rng_state, seed = _rng_state(query, features)
    out, lse = attention(query, key, value, dropout_seed=seed, return_lse=True, **options)
    pattern = query.new_empty(0)
    if with_pattern and seed is not None:
        pattern = dense_pattern(query, key, options, rng_state)
    return Forward(out.transpose(1, 2), lse, pattern, rng_state)


def attend_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Pair,
    max_seqlens: tuple[Any, Any],
    features: Features,
) -> Tensor:
    """Attention on packed [total, heads, head_dim] in flash-attn's terms: out.

    Args:
        cu_seqlens: integer [batch + 1] of the queries and of the keys.
        max_seqlens: the longest sequence of queries and of keys, ints or tensors of one integer.
    """
    out: Tensor = attention_varlen(
        packed("q", q),
        packed("k", k),
        packed("v", v),
        *cu_seqlens,
        max_seqlen_q=as_int(max_seqlens[0]),
        max_seqlen_k=as_int(max_seqlens[1]),
        **features.options(),
    )
    return out


def packed_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Pair,
    max_seqlens: tuple[Any, Any],
    features: Features,
    with_pattern: bool,
) -> Forward:
    """`attend_varlen` with everything that a forward pass can tell."""
    query, key, value = packed("q", q), packed("k", k), packed("v", v)
    max_q, max_k = map(as_int, max_seqlens)
    options = features.options()
    rng_state, seed = _rng_state(query, features)
    out, lse = attention_varlen(
        query,
        key,
        value,
        *cu_seqlens,
        max_seqlen_q=max_q,
        max_seqlen_k=max_k,
        dropout_seed=seed,
        return_lse=True,
        **options,
    )
    pattern = query.new_empty(0)
    if with_pattern and seed is not None:
        pattern = packed_pattern(query, key, cu_seqlens, (max_q, max_k), options, rng_state)
    return Forward(out, lse, pattern, rng_state)


def _rng_state(query: Tensor, features: Features) -> tuple[Tensor, Tensor | None]:
    """The state that is returned and the seed to pass on: without dropout no number is drawn."""
    if features.dropout_p > 0:
        state = draw_rng_state(query.device)
        return state, state
    return query.new_zeros(2, dtype=torch.int64), None


def no_fp8(*descales: Tensor | None) -> None:
    """flash-attn 3 scales fp8 tensors by these; there is no fp8 here."""
    names = ("q_descale", "k_descale", "v_descale")
    for name, descale in zip(names, descales, strict=True):
        if descale is not None:
            raise NotImplementedError(f"{name}: fp8 is not supported, must be None, got a tensor")
