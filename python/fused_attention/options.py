"""The keyword arguments of the public functions as types, for overloads and for wrappers."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from torch import Tensor

from fused_attention.masks import Band

if TYPE_CHECKING:
    from typing_extensions import Required

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


class DecodeOptions(TypedDict, total=False):
    """Keyword arguments of attention_with_kv_cache, return_lse aside."""

    key: Tensor | None
    value: Tensor | None
    cache_lengths: Required[int | Tensor]
    cache_batch: Tensor | None
    cache_starts: Tensor | None
    block_table: Tensor | None
    rotary_cos: Tensor | None
    rotary_sin: Tensor | None
    rotary_interleaved: bool
    causal: bool
    window: Window | None
    band: Band | None
    scale: float | None
    softcap: float
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    splits: int | None
    batch_invariant: bool
    backend: str | None
