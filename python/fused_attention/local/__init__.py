"""Attention to a window around a position that the model predicts."""

from fused_attention.local.door import Mode, explain_local, local_attention

__all__ = ["Mode", "explain_local", "local_attention"]
