"""What the weights of an attention look like, without the [Lq, Lk] matrix in memory."""

from fused_attention.maps.additive import additive_attention_maps
from fused_attention.maps.functional import attention_maps
from fused_attention.maps.local import local_attention_maps
from fused_attention.maps.results import AttentionMaps

__all__ = ["AttentionMaps", "additive_attention_maps", "attention_maps", "local_attention_maps"]
