"""Other libraries' interfaces on these kernels: flash-attn 2 and 3, their padding and rotary."""

from fused_attention.compat.install import install, uninstall

__all__ = ["install", "uninstall"]
