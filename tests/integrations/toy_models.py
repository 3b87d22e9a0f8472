"""Models as libraries write them: a vision transformer, and attention with processors."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class VisionAttention(nn.Module):
    """timm's way: one projection, normalised heads, dropout handed to the function."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm_q, self.norm_k = nn.LayerNorm(dim // heads), nn.LayerNorm(dim // heads)
        self.proj = nn.Linear(dim, dim)
        self.dropout = dropout

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        p = self.dropout if self.training else 0.0
        q, k = self.norm_q(q), self.norm_k(k)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=p)
        return self.proj(x.transpose(1, 2).reshape(batch, length, dim))


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, blocks with pre-normalisation, a head."""

    def __init__(self, dim: int = 24, heads: int = 4, depth: int = 2, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 17, dim) * 0.1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(dim),
                    "attention": VisionAttention(dim, heads),
                    "norm2": nn.LayerNorm(dim),
                    "mlp": nn.Sequential(
                        nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
                    ),
                }
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1) + self.positions
        for block in self.blocks:
            x = x + block["attention"](block["norm1"](x))
            x = x + block["mlp"](block["norm2"](x))
        out: Tensor = self.head(x[:, 0])
        return out


class Processor:
    """diffusers' way: an object without parameters computes for the module that holds them."""

    def __call__(
        self,
        module: DiffusionAttention,
        states: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        batch, length, _ = states.shape
        context = states if context is None else context
        if mask is not None:  # [batch, length of context], added to the scores
            mask = mask.view(batch, 1, 1, -1).expand(-1, module.heads, -1, -1)
        q, k, v = (
            layer(x).view(batch, -1, module.heads, module.head_dim).transpose(1, 2)
            for layer, x in ((module.to_q, states), (module.to_k, context), (module.to_v, context))
        )
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=False
        )
        out = out.transpose(1, 2).reshape(batch, length, module.heads * module.head_dim)
        return module.to_out(out.to(q.dtype))


class DiffusionAttention(nn.Module):
    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))
        self.processor = Processor()

    def forward(
        self, states: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        return self.processor(self, states, context, mask)


class DiffusionBlock(nn.Module):
    """Self-attention over pixels, cross-attention to a padded prompt."""

    def __init__(self, dim: int = 24, context_dim: int = 12, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn1 = DiffusionAttention(dim, dim, heads)
        self.attn2 = DiffusionAttention(dim, context_dim, heads)

    def forward(self, pixels: Tensor, prompt: Tensor, prompt_mask: Tensor) -> Tensor:
        batch, channels, height, width = pixels.shape
        states = pixels.flatten(2).transpose(1, 2)
        states = states + self.attn1(self.norm1(states))
        bias = (1 - prompt_mask.to(states.dtype)) * -10000.0
        states = states + self.attn2(self.norm2(states), prompt, bias)
        return states.transpose(1, 2).reshape(batch, channels, height, width)
