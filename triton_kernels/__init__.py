"""Triton kernels, installed as fused_attention.triton_kernels; imports torch and triton only."""
