"""Modules on the fused kernels."""

from fused_attention.nn.annotations import Annotations
from fused_attention.nn.attention import Attention, Memory
from fused_attention.nn.attention_maps import attention_layers, attention_maps
from fused_attention.nn.bahdanau_attention import BahdanauAttention
from fused_attention.nn.block import Block, BlockConfig, make_norm
from fused_attention.nn.cho_gru import ChoGRU
from fused_attention.nn.feed_forward import FeedForward
from fused_attention.nn.kv_cache import Cache, KVCache
from fused_attention.nn.luong_attention import LuongAttention
from fused_attention.nn.multi_head_attention import MultiHeadAttention
from fused_attention.nn.paged_kv_cache import PagedKVCache
from fused_attention.nn.positions import SinusoidalPositions, alibi_slopes
from fused_attention.nn.rotary import Rotary, Rotation
from fused_attention.nn.rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
)
from fused_attention.nn.sequences import Sequences, pack, unpack

__all__ = [
    "Annotations",
    "Attention",
    "BahdanauAttention",
    "Block",
    "BlockConfig",
    "Cache",
    "ChoGRU",
    "DynamicScaling",
    "FeedForward",
    "KVCache",
    "LinearScaling",
    "Llama3Scaling",
    "LuongAttention",
    "Memory",
    "MultiHeadAttention",
    "PagedKVCache",
    "Rotary",
    "Rotation",
    "Sequences",
    "SinusoidalPositions",
    "YarnScaling",
    "alibi_slopes",
    "attention_layers",
    "attention_maps",
    "make_norm",
    "pack",
    "unpack",
]
