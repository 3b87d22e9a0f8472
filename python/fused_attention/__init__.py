"""Fused attention kernels for CPUs and GPUs behind one function."""

from fused_attention.dispatch import backends
from fused_attention.functional import attention, attention_varlen, explain
from fused_attention.masks import Band
from fused_attention.merge import merge_attention

__all__ = [
    "Band",
    "__version__",
    "attention",
    "attention_varlen",
    "backends",
    "explain",
    "merge_attention",
]

__version__ = "0.1.0"
