"""Attention for Hugging Face transformers; importing this module registers "fused_attention".

    import fused_attention.integrations.transformers
    model = AutoModel.from_pretrained(name, attn_implementation="fused_attention")
    model.set_attn_implementation("fused_attention")  # or on a model that is there already

Models compute what their eager attention computes. Two functions are registered: one is asked for
the mask, once per forward pass, the other is called by every layer.
"""

from __future__ import annotations

from fused_attention.integrations._transformers_version import require_transformers

require_transformers()  # before the imports that need it

from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402

from fused_attention.integrations._transformers_attention import (  # noqa: E402
    NAME,
    fused_attention_forward,
)
from fused_attention.integrations._transformers_masks import (  # noqa: E402
    FusedMask,
    fused_attention_mask,
)

__all__ = ["NAME", "FusedMask", "fused_attention_forward", "fused_attention_mask"]

AttentionInterface.register(NAME, fused_attention_forward)
AttentionMaskInterface.register(NAME, fused_attention_mask)
