"""MultiHeadAttention: nn.MultiheadAttention's parameters and call, on the fused kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.init import constant_, xavier_normal_, xavier_uniform_
from torch.nn.parameter import Parameter

from fused_attention.decode_problem import PREFILL
from fused_attention.masks import Band
from fused_attention.nn.inputs import check_inputs, check_sizes
from fused_attention.nn.kv_cache import KVCache
from fused_attention.nn.mask_terms import mask_terms
from fused_attention.nn.multi_head import (
    Projection,
    attend,
    heads_first,
    join_heads,
    with_batch,
)
from fused_attention.nn.rotary import Rotary

FULL = Band.full()
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) that takes nn.MultiheadAttention's place.

    It has nn.MultiheadAttention's parameters, with the same names and initial values, and its
    call. Nested tensors and torch.jit.script are what it does not take.

    Args:
        embed_dim: features of query and output.
        num_heads: query heads, of embed_dim / num_heads features each.
        dropout: chance in [0, 1) that a weight is dropped in training.
        bias: whether the projections add biases.
        add_bias_kv: adds a learned key and value that every query sees.
        add_zero_attn: adds a key and a value of zeros.
        kdim: features of key; default embed_dim.
        vdim: features of value; default embed_dim.
        batch_first: inputs and output are [batch, length, features] instead of [length, batch,
            features].
        num_kv_heads: heads of key and value; each serves num_heads / num_kv_heads query heads
            (grouped-query attention, Ainslie et al. 2023). Default num_heads.
        band: which keys a query sees in every call, such as Band.causal().
        rotary: rotates queries and keys by their positions.

    Raises:
        ValueError: a size is not positive or does not divide another, or dropout is out of range.
    """

    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    q_proj_weight: Tensor | None
    k_proj_weight: Tensor | None
    v_proj_weight: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_kv_heads: int | None = None,
        band: Band | None = None,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_sizes(embed_dim, num_heads, self.num_kv_heads, rotary, dropout)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        self.band, self.rotary = band, rotary
        q_size, k_size, v_size = (heads * self.head_dim for heads in self._heads())
        total = q_size + k_size + v_size
        shapes: dict[str, tuple[int, ...] | None] = dict.fromkeys(("in_proj_weight", *_SEPARATE))
        if self.kdim == self.vdim == embed_dim:
            shapes["in_proj_weight"] = (total, embed_dim)
        else:
            widths = ((q_size, embed_dim), (k_size, self.kdim), (v_size, self.vdim))
            shapes.update(zip(_SEPARATE, widths, strict=True))
        shapes["in_proj_bias"] = (total,) if bias else None
        shapes["bias_k"] = (1, 1, k_size) if add_bias_kv else None
        shapes["bias_v"] = (1, 1, v_size) if add_bias_kv else None
        for name, shape in shapes.items():
            empty = None if shape is None else torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, None if empty is None else Parameter(empty))
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self._reset_parameters()

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """False: torch's encoder layers ask this before they pass the module by in inference."""
        return False

    def _heads(self) -> tuple[int, int, int]:
        """Heads of query, key and value."""
        return self.num_heads, self.num_kv_heads, self.num_kv_heads

    def _projection(self) -> Projection:
        return Projection(
            self.in_proj_weight,
            self.in_proj_bias,
            self.q_proj_weight,
            self.k_proj_weight,
            self.v_proj_weight,
        )

    def _reset_parameters(self) -> None:
        for weight in (self.in_proj_weight, *(getattr(self, name) for name in _SEPARATE)):
            if weight is not None:
                xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            constant_(self.in_proj_bias, 0.0)
            constant_(self.out_proj.bias, 0.0)
        for extra in (self.bias_k, self.bias_v):
            if extra is not None:
                xavier_normal_(extra)

    def new_cache(
        self, batch: int, max_length: int, *, dtype: torch.dtype | None = None
    ) -> KVCache:
        """An empty cache for `forward`, on the parameters' device and by default in their dtype."""
        weight = self.out_proj.weight
        sizes = (batch, self.num_kv_heads, max_length, self.head_dim)
        return KVCache(*sizes, dtype=dtype or weight.dtype, device=weight.device)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        kv_lengths: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of query over key and value; masks, band and kv_lengths all apply.

        Args:
            query: [Lq, B, embed_dim], with batch_first [B, Lq, embed_dim], unbatched
                [Lq, embed_dim].
            key: the same with Lk and kdim.
            value: the same with Lk and vdim.
            key_padding_mask: [B, Lk], unbatched [Lk]; bool (True hides the key) or floating point
                (added to the scores). With a cache, Lk counts the keys in it here and below.
            need_weights: also return the weights, which costs the scores a second time.
            attn_mask: [Lq, Lk] or [B * num_heads, Lq, Lk], bool (True is hidden) or floating point.
            average_attn_weights: return the mean over the heads, which is summed up head by head,
                instead of the weights of each head.
            is_causal: attn_mask, which must be given, is the causal mask (query i sees the keys up
                to i): it need not be read.
            kv_lengths: integer [B], how many keys of each batch row exist.
            positions: integer [Lq] or [B, Lq], for rotary. Default: one after the other, from the
                cache's length on.
            cache: from `new_cache`. The projected keys and values are appended to it, and the
                query sees all that it holds then.

        Returns:
            out, shaped as query, and the weights before dropout: None without need_weights, else
            [B, Lq, Lk] or [B, num_heads, Lq, Lk], unbatched without B. Added keys come last.
            A query that sees no key has weights of 0, and out_proj's bias as its out.

        Raises:
            TypeError, ValueError: an argument has a wrong type, shape or value.
            RuntimeError: is_causal without attn_mask, or gradients through a cache.
        """
        check_inputs(query, key, value, (self.embed_dim, self.kdim, self.vdim), self.batch_first)
        batched, batch_first = query.dim() == 3, self.batch_first or query.dim() == 2
        if not batched:
            query, key, value = with_batch(query, key, value, 0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        projected = self._projection().heads(query, key, value, self.head_dim, self._heads())
        q, k, v = (heads_first(x, batch_first) for x in projected)
        if self.rotary is not None:
            start = 0 if cache is None else cache.length
            q, k = _rotated(self.rotary, q, k, positions, start)
        elif positions is not None:
            raise ValueError("positions: need a module with rotary, got one without")
        masks = (attn_mask, key_padding_mask, kv_lengths)
        plain = not is_causal and all(mask is None for mask in masks)
        if cache is not None and plain and not need_weights and self._decodes(q):
            out = self.out_proj(join_heads(cache.attend(q, k, v, self.band or FULL), batch_first))
            return (out if batched else out[0]), None
        if cache is not None:
            k, v = cache.append(k, v)
        scores = (*q.shape[:3], k.shape[2])
        if attn_mask is None and is_causal:
            raise RuntimeError(
                "is_causal: is a hint about attn_mask, which must be given, got None"
            )
        terms = mask_terms(
            scores,
            q.dtype,
            band=self.band,
            kv_lengths=kv_lengths,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            is_causal=cache is None and is_causal,  # the hint means a diagonal from the top left
        )
        out, weights = attend(
            q,
            k,
            v,
            terms,
            door="nn.MultiHeadAttention",
            bias_k=self.bias_k,
            bias_v=self.bias_v,
            zero_key=self.add_zero_attn,
            dropout_p=self.dropout if self.training else 0.0,
            need_weights=need_weights,
            average_weights=average_attn_weights,
        )
        out = self.out_proj(join_heads(out, batch_first))
        if not batched:
            out, weights = out[0], None if weights is None else weights[0]
        return out, weights

    def _decodes(self, query: Tensor) -> bool:
        """Whether these queries to a cache are a step of decoding, and nothing but one."""
        extras = self.bias_k is not None or self.add_zero_attn
        dropped = self.training and self.dropout > 0
        fixed = self.band is not None and self.band.offset is not None
        recorded = torch.is_grad_enabled() and query.requires_grad
        return query.shape[2] < PREFILL and not (extras or dropped or fixed or recorded)

    def extra_repr(self) -> str:
        parts = [f"{self.embed_dim}, {self.num_heads}"]
        defaults = {
            "dropout": 0.0,
            "add_zero_attn": False,
            "kdim": self.embed_dim,
            "vdim": self.embed_dim,
            "batch_first": False,
            "num_kv_heads": self.num_heads,
            "band": None,
            "rotary": None,
        }
        given = ((name, getattr(self, name)) for name in defaults)
        parts += [f"{name}={value}" for name, value in given if value != defaults[name]]
        parts += ["bias=False"] if self.in_proj_bias is None else []
        parts += [] if self.bias_k is None else ["add_bias_kv=True"]
        return ", ".join(parts)


def _rotated(
    rotary: Rotary, query: Tensor, key: Tensor, positions: Tensor | None, start: int
) -> tuple[Tensor, Tensor]:
    """Query and key, [B, H, L, D], with their positions in them."""
    length = query.shape[2]
    if key.shape[2] != length:
        rule = f"rotary: needs as many new keys as queries, {length} (it is for self-attention)"
        raise ValueError(f"{rule}, got {key.shape[2]}")
    if positions is None:
        positions = torch.arange(start, start + length, device=query.device)
    elif tuple(positions.shape) not in ((length,), (query.shape[0], length)):
        rule = f"positions: must have shape [{length}] or [{query.shape[0]}, {length}]"
        raise ValueError(f"{rule}, got {tuple(positions.shape)}")
    return rotary.rotate(query, positions), rotary.rotate(key, positions)
