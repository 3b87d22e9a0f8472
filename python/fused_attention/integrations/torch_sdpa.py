"""Two ways to run torch's scaled_dot_product_attention on this package's kernels.

Importing this module registers "fused_attention" with torch.nn.attention and changes nothing:

    torch.nn.attention.activate_flash_attention_impl("fused_attention")   for the whole process
    with fused_attention.sdpa(): ...                                      for what runs inside

The first replaces torch's flash attention operators, so it serves what torch sends there: no
dropout and no gradient of a mask on the CPU, no mask at all on CUDA. The second takes the calls
before torch decides.
"""

from __future__ import annotations

from torch.nn.attention import register_flash_attention_impl

from fused_attention.integrations.flash_override import Override
from fused_attention.integrations.sdpa_scope import sdpa

__all__ = ["NAME", "sdpa"]

NAME = "fused_attention"

register_flash_attention_impl(NAME, register_fn=Override)
