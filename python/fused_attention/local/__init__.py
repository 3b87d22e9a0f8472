"""Attention to a window around a position that the model predicts."""

from fused_attention.local.door import explain_local, local_attention

__all__ = ["explain_local", "local_attention"]
