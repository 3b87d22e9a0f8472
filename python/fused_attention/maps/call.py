"""What one call of the operator fused_attention::maps carries down to a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.backends.call import Call


class Results(NamedTuple):
    """What backends write, shaped as in AttentionMaps; empty [0] where it was not asked for."""

    weights: Tensor
    column_mass: Tensor
    entropy: Tensor
    argmax: Tensor
    top_weights: Tensor
    top_indices: Tensor


class MapsCall(NamedTuple):
    """Tensors and scalars in the operator's argument order; see Call for those of attention."""

    query: Tensor
    key: Tensor
    lse: Tensor  # [B, Hq, Lq], packed [Hq, Tq], contiguous
    bias: Tensor | None
    alibi_slopes: Tensor | None
    kv_lengths: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    band_offsets: Tensor | None
    heads: Tensor | None  # int32, query heads; None: all
    rows: Tensor | None  # int32, queries whose weights are wanted, packed: rows of the tensor
    max_seqlen_q: int
    max_seqlen_k: int
    scale: float
    softcap: float
    left: int
    right: int
    offset: int
    column_mass: bool = False
    entropy: bool = False
    argmax: bool = False
    top_k: int = 0  # 0: not wanted

    @property
    def packed(self) -> bool:
        return self.cu_seqlens_q is not None

    @property
    def attention(self) -> Call:
        """The attention whose weights these are. Nothing here depends on its values."""
        return Call(
            *(self.query, self.key, self.key, self.bias, self.alibi_slopes, None),
            *(self.kv_lengths, self.cu_seqlens_q, self.cu_seqlens_k, self.band_offsets, None),
            *(self.max_seqlen_q, self.max_seqlen_k, self.scale, self.softcap),
            *(self.left, self.right, self.offset, 0.0),
        )

    def empty_results(self) -> Results:
        """Unwritten results."""
        length = 0 if self.packed else 2
        heads = self.query.shape[1] if self.heads is None else self.heads.shape[0]
        leading = (heads,) if self.packed else (self.query.shape[0], heads)
        queries = (*leading, self.query.shape[length])
        keys = self.key.shape[length]
        rows = 0 if self.rows is None else self.rows.shape[0]

        def empty(wanted: bool, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return self.query.new_empty(shape if wanted else (0,), dtype=dtype)

        floating = self.attention.lse_dtype
        top = (*queries, self.top_k)
        return Results(
            empty(self.rows is not None, (*leading, rows, keys), floating),
            empty(self.column_mass, (*leading, keys), floating),
            empty(self.entropy, queries, floating),
            empty(self.argmax, queries, torch.int64),
            empty(self.top_k > 0, top, floating),
            empty(self.top_k > 0, top, torch.int64),
        )

    def wanted(self, results: Results) -> list[Tensor | None]:
        """The results with None for those that were not asked for."""
        asked = (
            *(self.rows is not None, self.column_mass, self.entropy, self.argmax),
            *(self.top_k > 0, self.top_k > 0),
        )
        return [result if ask else None for result, ask in zip(results, asked, strict=True)]
