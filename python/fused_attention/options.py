"""The keyword arguments of the public functions as types, for overloads and for wrappers."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

from fused_attention.masks import Band

Window = tuple[int | None, int | None]


class CommonOptions(TypedDict, total=False):
    """Keyword arguments that attention and attention_varlen share, return_lse aside."""

    causal: bool
    window: Window | None
    band: Band | None
    scale: float | None
    alibi_slopes: Tensor | None
    softcap: float
    sinks: Tensor | None
    dropout_p: float
    dropout_seed: int | Tensor | None
    dropout_offset: int
    band_offsets: Tensor | None
    deterministic: bool
    backend: str | None


class DenseOptions(CommonOptions, total=False):
    """Keyword arguments of attention."""

    bias: Tensor | None
    kv_lengths: Tensor | None


class PackedOptions(CommonOptions, total=False):
    """Keyword arguments of attention_varlen."""

    max_seqlen_q: int | None
    max_seqlen_k: int | None
