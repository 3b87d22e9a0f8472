"""Rotary position embedding with the interface of flash_attn.layers.rotary.

Differentiable in what is turned, any number of times; a gradient is never turned in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_attention.compat.conventions import wrong_shape
from fused_attention.compat.rotation import (
    Offsets,
    Part,
    Rotate,
    RotateParts,
    apply_rotary,
)

__all__ = [
    "RotaryEmbedding",
    "apply_rotary",
    "apply_rotary_emb",
    "apply_rotary_emb_func",
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
    "apply_rotary_emb_torch",
]


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: Offsets = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """Turn the first rotary_dim components of every head by the angles of its position.

    Args:
        x: [batch, seqlen, heads, head_dim]; with cu_seqlens packed [total, heads, head_dim].
        cos, sin: [positions, rotary_dim / 2].
        interleaved: pairs are components 0 and 1, 2 and 3 (GPT-J); default the two halves of
            rotary_dim (GPT-NeoX).
        inplace: write the result into x.
        seqlen_offsets: position of each sequence's first token, an int or integer [batch].
        cu_seqlens: integer [batch + 1], where packed sequences begin and end. What a row beyond
            the last one becomes is not defined.
        max_seqlen: accepted, not needed.

    Returns:
        x turned, in its dtype.

    Raises:
        ValueError: shapes do not belong together, or a position has no row in cos and sin (on an
            accelerator a tensor of positions is trusted).
    """
    turn = interleaved, inplace, False
    out: Tensor = Rotate.apply(x, cos, sin, seqlen_offsets, cu_seqlens, *turn)
    return out


apply_rotary_emb_func = apply_rotary_emb


def apply_rotary_emb_torch(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> Tensor:
    """`apply_rotary_emb` as one differentiable formula, in the dtypes that it is given.

    Args:
        x: [batch, seqlen, heads, head_dim].
        cos, sin: [seqlen, rotary_dim / 2] or [batch, seqlen, rotary_dim / 2].
    """
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    x0, x1 = turned.unflatten(-1, (-1, 2) if interleaved else (2, -1)).unbind(
        -1 if interleaved else -2
    )
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    pair = x0 * cos - x1 * sin, x0 * sin + x1 * cos
    turned = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat([turned, rest], dim=-1)


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: Offsets = 0,
    num_heads_q: int | None = None,
) -> Tensor:
    """`apply_rotary_emb` on the queries and keys of a stack, in place.

    Args:
        qkv: [batch, seqlen, 3, heads, head_dim] or, with num_heads_q,
            [batch, seqlen, num_heads_q + 2 * heads_k, head_dim].
        cos_k, sin_k: other tables for the keys (XPos); default cos and sin.
        num_heads_q: number of query heads in a 4-D qkv.

    Returns:
        qkv.
    """
    parts: tuple[Part, ...]
    if qkv.dim() == 5 and qkv.shape[2] == 3:
        parts = (0, False), (1, True)
    elif qkv.dim() == 4 and num_heads_q is not None and 0 < num_heads_q < qkv.shape[2]:
        heads_k, odd = divmod(qkv.shape[2] - num_heads_q, 2)
        if odd:
            rule = "must leave an even number of heads to keys and values"
            raise ValueError(f"num_heads_q: {rule}, got {num_heads_q} of {qkv.shape[2]}")
        parts = (slice(num_heads_q), False), (slice(num_heads_q, num_heads_q + heads_k), True)
    else:
        layout = "[batch, seqlen, 3, heads, head_dim] or, with num_heads_q, 4-D"
        wrong_shape("qkv", layout, qkv)
    options = seqlen_offsets, parts, interleaved, False
    out: Tensor = RotateParts.apply(qkv, cos, sin, cos_k, sin_k, *options)
    return out


def apply_rotary_emb_kv_(
    kv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, seqlen_offsets: Offsets = 0
) -> Tensor:
    """`apply_rotary_emb` on the keys of kv [batch, seqlen, 2, heads, head_dim], in place."""
    if kv.dim() != 5 or kv.shape[2] != 2:
        wrong_shape("kv", "[batch, seqlen, 2, heads, head_dim]", kv)
    options = seqlen_offsets, ((0, True),), interleaved, False
    out: Tensor = RotateParts.apply(kv, cos, sin, None, None, *options)
    return out


class RotaryEmbedding(torch.nn.Module):
    """Rotary embedding that keeps its tables; with scale_base XPos (Sun et al. 2022).

    Args:
        dim: rotary_dim, how many components of a head are turned; even.
        base: of the geometric series of angles.
        interleaved: pairs are neighbours (GPT-J) instead of halves (GPT-NeoX).
        scale_base: XPos's, 512 in the paper; None is plain rotary.
        device: of the tables.
    """

    inv_freq: Tensor
    scale: Tensor | None

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scale_base: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.base, self.interleaved = dim, float(base), interleaved
        self.scale_base = scale_base
        self.register_buffer("inv_freq", self._inv_freq(device), persistent=False)
        component = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
        scale = None if scale_base is None else (component + 0.4 * dim) / (1.4 * dim)
        self.register_buffer("scale", scale, persistent=False)
        # Other code reads these names.
        self._seq_len_cached = 0
        self._cos_cached: Tensor | None = None
        self._sin_cached: Tensor | None = None
        self._cos_k_cached: Tensor | None = None
        self._sin_k_cached: Tensor | None = None

    def forward(
        self,
        qkv: Tensor,
        kv: Tensor | None = None,
        seqlen_offset: Offsets = 0,
        max_seqlen: int | None = None,
        num_heads_q: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Turn queries and keys in place.

        Args:
            qkv: a stack as `apply_rotary_emb_qkv_` takes it; with kv the queries alone,
                [batch, seqlen, heads, head_dim].
            kv: [batch, seqlen, 2, heads, head_dim].
            seqlen_offset: position of the first token, an int or integer [batch].
            max_seqlen: how far the tables must reach; needed once where seqlen_offset is a tensor.
            num_heads_q: see `apply_rotary_emb_qkv_`.

        Returns:
            qkv, or (queries, kv).
        """
        if max_seqlen is None and not isinstance(seqlen_offset, Tensor):
            max_seqlen = qkv.shape[1] + seqlen_offset
        if max_seqlen is not None:
            self._update_cos_sin_cache(max_seqlen, device=qkv.device, dtype=qkv.dtype)
        cos, sin = self._cos_cached, self._sin_cached
        if cos is None or sin is None:
            raise ValueError("max_seqlen: must be given with a seqlen_offset tensor, got None")
        cos_k, sin_k = self._cos_k_cached, self._sin_k_cached
        turn: dict[str, Any] = {
            "interleaved": self.interleaved,
            "seqlen_offsets": seqlen_offset,
        }
        if kv is None:
            return apply_rotary_emb_qkv_(
                qkv, cos, sin, cos_k, sin_k, num_heads_q=num_heads_q, **turn
            )
        queries = apply_rotary_emb(qkv, cos, sin, inplace=True, **turn)
        key_tables = cos if cos_k is None else cos_k, sin if sin_k is None else sin_k
        return queries, apply_rotary_emb_kv_(kv, *key_tables, **turn)

    def _inv_freq(self, device: torch.device | str | None) -> Tensor:
        component = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32)
        return 1.0 / self.base ** (component / self.dim)

    def _update_cos_sin_cache(
        self, seqlen: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Compute the tables again unless those at hand reach as far, there, in that dtype."""
        cached = self._cos_cached
        if (
            cached is not None
            and seqlen <= self._seq_len_cached
            and (cached.device, cached.dtype) == (device, dtype)
            and not (self.training and cached.is_inference())
        ):
            return
        self._seq_len_cached = seqlen
        # In fp32 whatever the model's dtype: a position of 1000 has no exact bf16.
        position = torch.arange(seqlen, device=device, dtype=torch.float32)
        exact = self.inv_freq.dtype == torch.float32  # unless the model was cast
        angle = torch.outer(position, self.inv_freq if exact else self._inv_freq(device))
        cos, sin = angle.cos(), angle.sin()
        if self.scale_base is not None and self.scale is not None:
            growth = self.scale.float() ** ((position - seqlen // 2) / self.scale_base)[:, None]
            self._cos_k_cached = (cos / growth).to(dtype)
            self._sin_k_cached = (sin / growth).to(dtype)
            cos, sin = cos * growth, sin * growth
        self._cos_cached, self._sin_cached = cos.to(dtype), sin.to(dtype)
