"""What one operator call carries from autograd.py down to a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.masks import Band


class Call(NamedTuple):
    """Tensors and scalars of one attention call; the fields stand in the operator's argument order.

    Dense: query [B, Hq, Lq, D], key [B, Hkv, Lk, D], value [B, Hkv, Lk, Dv].
    Packed (cu_seqlens_q given): query [Tq, Hq, D], key [Tk, Hkv, D], value [Tk, Hkv, Dv].
    Every tensor's last dimension is contiguous; the integer tensors are int32.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None  # [B|1, Hq|1, Lq|1, Lk|1], any floating dtype and strides
    alibi_slopes: Tensor | None  # fp32 [Hq] or [B, Hq]
    sinks: Tensor | None  # [Hq], fp32 (fp64 for fp64)
    kv_lengths: Tensor | None  # [B]
    cu_seqlens_q: Tensor | None  # [B + 1]
    cu_seqlens_k: Tensor | None  # [B + 1]
    band_offsets: Tensor | None  # [B], replaces `offset` row by row
    rng_state: Tensor | None  # int64 [2]: Philox seed and offset
    max_seqlen_q: int
    max_seqlen_k: int
    scale: float
    softcap: float  # 0: none
    left: int
    right: int
    offset: int
    dropout_p: float
    deterministic: bool = False  # the same bits in every run; without it a backend may choose

    @property
    def packed(self) -> bool:
        return self.cu_seqlens_q is not None

    @property
    def band(self) -> Band:
        return Band(self.left, self.right, self.offset)

    @property
    def lse_dtype(self) -> torch.dtype:
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    def empty_out(self) -> Tensor:
        """Unwritten output: the query's dtype and dimension order, the value's last dimension."""
        return empty_like_layout(self.query, self.value.shape[-1])

    def empty_lse(self) -> Tensor:
        """Unwritten log-sum-exp: [B, Hq, Lq], packed [Hq, Tq]."""
        query = self.query
        shape = (query.shape[1], query.shape[0]) if self.packed else query.shape[:-1]
        return query.new_empty(shape, dtype=self.lse_dtype)


class Gradients(NamedTuple):
    """Gradients of one call; each has the dtype and shape of its input."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    sinks: Tensor | None


def empty_like_layout(tensor: Tensor, last_dim: int) -> Tensor:
    """Empty tensor of `tensor`'s shape but for the last dimension, dense in the same order of dims.

    A [B, H, L, D] view of a [B, L, H, D] tensor gives such a view again, so that what follows
    (usually a transpose and a reshape) costs nothing.
    """
    if tensor.shape[-1] == last_dim:
        return torch.empty_like(tensor)  # keeps the dimension order, at a tenth of the cost
    leading = sorted(range(tensor.dim() - 1), key=lambda d: (tensor.stride(d), tensor.shape[d]))
    order = leading[::-1] + [tensor.dim() - 1]
    shape = list(tensor.shape[:-1]) + [last_dim]
    dense = tensor.new_empty([shape[d] for d in order])
    inverse = [order.index(d) for d in range(tensor.dim())]
    return dense.permute(inverse)


def sink_gradient(call: Call, lse: Tensor, delta: Tensor) -> Tensor:
    """-sum over rows of P(sink) * delta: a sink is a key whose value is 0."""
    sinks = call.sinks
    assert sinks is not None
    shape = (-1, 1) if call.packed else (1, -1, 1)
    weight = torch.exp(sinks.view(shape) - lse)
    weight = torch.where(lse == -torch.inf, 0.0, weight)  # no key and a sink of -inf
    return -(weight * delta).sum(dim=1 if call.packed else (0, 2))


class DecodeCall(NamedTuple):
    """Tensors and scalars of one step of decoding, in the order of fused_attention::decode.

    The caches [rows, Hkv, capacity, D] and [rows, Hkv, capacity, Dv] are written to if there is a
    new key; with a block_table they are [pages, Hkv, page_size, D] and Dv. Every tensor's last
    dimension is contiguous; the integer tensors are contiguous int32.
    """

    query: Tensor  # [B, Hq, Lq, D]
    key_cache: Tensor
    value_cache: Tensor
    key: Tensor | None  # [B, Hkv, new, D], stored behind the cached keys
    value: Tensor | None  # [B, Hkv, new, Dv]
    cache_lengths: Tensor  # [B], without the new keys
    cache_batch: Tensor | None  # [B], row of a contiguous cache
    cache_starts: Tensor | None  # [B], the first key that exists
    block_table: Tensor | None  # [B, pages of a sequence]
    rotary_cos: Tensor | None  # [positions, rotary_dim / 2], query's dtype or fp32, contiguous
    rotary_sin: Tensor | None
    alibi_slopes: Tensor | None  # fp32 [Hq] or [B, Hq]
    sinks: Tensor | None  # [Hq], fp32 (fp64 for fp64)
    scale: float
    softcap: float  # 0: none
    left: int
    right: int
    rotary_interleaved: bool
    splits: int  # 0: the backend decides
    batch_invariant: bool

    @property
    def len_new(self) -> int:
        return 0 if self.key is None else self.key.shape[2]

    @property
    def capacity(self) -> int:
        """How many keys a sequence may have."""
        rows = self.key_cache.shape[2]
        return rows if self.block_table is None else rows * self.block_table.shape[1]

    def empty_out(self) -> Tensor:
        """Unwritten output: the query's dtype and dimension order, the value's last dimension."""
        return empty_like_layout(self.query, self.value_cache.shape[-1])

    def empty_lse(self) -> Tensor:
        """Unwritten log-sum-exp [B, Hq, Lq]."""
        wide = self.query.dtype == torch.float64
        dtype = torch.float64 if wide else torch.float32
        return self.query.new_empty(self.query.shape[:-1], dtype=dtype)
