"""Fused attention kernels for CPUs and GPUs behind one function."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fused_attention.additive import additive_attention
from fused_attention.decoding import attention_with_kv_cache
from fused_attention.dispatch import backends
from fused_attention.functional import attention, attention_varlen, explain
from fused_attention.local import local_attention
from fused_attention.maps import (
    AttentionMaps,
    additive_attention_maps,
    attention_maps,
    local_attention_maps,
)
from fused_attention.masks import Band
from fused_attention.merge import merge_attention

if TYPE_CHECKING:
    from fused_attention.conversion import convert
    from fused_attention.integrations.torch_sdpa import sdpa

__all__ = [
    "AttentionMaps",
    "Band",
    "__version__",
    "additive_attention",
    "additive_attention_maps",
    "attention",
    "attention_maps",
    "attention_varlen",
    "attention_with_kv_cache",
    "backends",
    "convert",
    "explain",
    "local_attention",
    "local_attention_maps",
    "merge_attention",
    "sdpa",
]

__version__ = "0.1.0"

# Doors of other rooms, which are imported when they are first used.
_DOORS = {
    "convert": "fused_attention.conversion",
    "sdpa": "fused_attention.integrations.torch_sdpa",
}


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'fused_attention' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
