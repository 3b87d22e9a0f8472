"""Additive (Bahdanau) attention: softmax over v . tanh(q_i + k_j), and the context, in one pass."""

from fused_attention.additive.door import additive_attention

__all__ = ["additive_attention"]
