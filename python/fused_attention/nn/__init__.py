"""Modules on the fused kernels."""

from fused_attention.nn.kv_cache import KVCache
from fused_attention.nn.multi_head_attention import MultiHeadAttention
from fused_attention.nn.rotary import Rotary

__all__ = ["KVCache", "MultiHeadAttention", "Rotary"]
