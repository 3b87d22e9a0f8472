"""The residual block that all models here are stacks of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fused_attention.checks import wrong_value
from fused_attention.masks import Band
from fused_attention.nn.attention import WHOLE, Attention, Memory
from fused_attention.nn.dropout import dropout
from fused_attention.nn.feed_forward import FeedForward
from fused_attention.nn.kv_cache import Cache
from fused_attention.nn.rotary import Rotation
from fused_attention.nn.sequences import Sequences

NormName = Literal["layer_norm", "rms_norm", "none"]


@dataclass(frozen=True)
class BlockConfig:
    """What a block is made of. The defaults are those of GPT-2.

    Raises:
        ValueError: an attribute is out of its range.
    """

    dim: int
    heads: int
    hidden_dim: int
    """Features of the feed-forward part's hidden layer."""
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: NormName = "layer_norm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    """Of layer_norm; rms_norm has none."""
    norm_first: bool = True
    """x + part(norm(x)), else norm(x + part(x)) as in Vaswani et al. 2017."""
    attention_norm: bool = True
    """Whether there is a norm at the attention; ModernBERT's first block has none."""
    activation: str = "gelu_tanh"
    gated: bool = False
    bias: bool = True
    """Of query, key and value."""
    out_bias: bool = True
    """Of the attention's output."""
    feed_forward_bias: bool = True
    dropout: float = 0.0
    """Of what each part adds to the residual stream."""
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    """Of the feed-forward part's hidden layer."""
    band: Band = Band.causal()
    """Which keys a query of the self-attention sees."""
    scale: float | None = None
    """Of the scores, default 1 / sqrt(head_dim)."""
    alibi: bool = False
    cross_attention: bool = False
    """Whether a second attention looks at a memory, as a decoder's does."""

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "hidden_dim"):
            if getattr(self, name) < 1:
                wrong_value(name, "must be at least 1", getattr(self, name))
        for name in ("dropout", "attention_dropout", "hidden_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                wrong_value(name, "must be in [0, 1)", getattr(self, name))


def make_norm(
    name: NormName,
    dim: int,
    eps: float,
    *,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """torch's own layer of that name."""
    if name == "layer_norm":
        return nn.LayerNorm(dim, eps, bias=bias, device=device, dtype=dtype)
    if name == "rms_norm":
        return nn.RMSNorm(dim, eps, device=device, dtype=dtype)
    if name == "none":
        return nn.Identity()
    wrong_value("norm", "must be layer_norm, rms_norm or none", name)


class Block(nn.Module):
    """Self-attention, cross-attention if asked for, and feed-forward, each around a residual."""

    def __init__(
        self,
        config: BlockConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm_first, self.dropout = config.norm_first, config.dropout

        def norm() -> nn.Module:
            return make_norm(
                config.norm,
                config.dim,
                config.norm_eps,
                bias=config.norm_bias,
                device=device,
                dtype=dtype,
            )

        def attention(band: Band, alibi: bool) -> Attention:
            return Attention(
                config.dim,
                config.heads,
                kv_heads=config.kv_heads,
                head_dim=config.head_dim,
                bias=config.bias,
                out_bias=config.out_bias,
                dropout=config.attention_dropout,
                band=band,
                scale=config.scale,
                alibi=alibi,
                device=device,
                dtype=dtype,
            )

        self.attention = attention(config.band, config.alibi)
        self.attention_norm = norm() if config.attention_norm else nn.Identity()
        self.cross_attention = self.cross_attention_norm = None
        if config.cross_attention:
            self.cross_attention = attention(Band.full(), False)
            self.cross_attention_norm = norm()
        self.feed_forward = FeedForward(
            config.dim,
            config.hidden_dim,
            activation=config.activation,
            gated=config.gated,
            bias=config.feed_forward_bias,
            dropout=config.hidden_dropout,
            device=device,
            dtype=dtype,
        )
        self.feed_forward_norm = norm()

    def remember(self, states: Tensor, sequences: Sequences = WHOLE) -> Memory:
        """What `forward` takes as memory, for all steps of decoding.

        Args:
            states: the encoder's, [batch, length, dim], packed [total, dim].
        """
        if self.cross_attention is None:
            raise ValueError("memory: the block must have cross_attention to look at one, got none")
        return self.cross_attention.remember(states, sequences)

    def forward(
        self,
        x: Tensor,
        sequences: Sequences = WHOLE,
        *,
        rotation: Rotation | None = None,
        cache: Cache | None = None,
        memory: Memory | Tensor | None = None,
        memory_sequences: Sequences = WHOLE,
    ) -> Tensor:
        """One block.

        Args:
            x: [batch, length, dim], packed [total, dim].
            sequences, rotation, cache: see Attention.forward.
            memory: the encoder's states [batch, length, dim] (packed [total, dim]), or what
                `remember` made of them.
            memory_sequences: where memory's sequences are, if it is a Tensor.

        Returns:
            Like x.

        Raises:
            ValueError: a memory is given to a block without cross-attention, or none to one with.
        """
        if (memory is None) != (self.cross_attention is None):
            rule = "must be given to a block with cross_attention, and to no other"
            wrong_value("memory", rule, "none" if memory is None else "one")
        y = self._before(x, self.attention_norm)
        y = self.attention(y, sequences, rotation=rotation, cache=cache)
        x = self._after(x, y, self.attention_norm)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            if isinstance(memory, Tensor):
                memory = self.cross_attention.remember(memory, memory_sequences)
            y = self._before(x, self.cross_attention_norm)
            y = self.cross_attention(y, sequences, memory=memory)
            x = self._after(x, y, self.cross_attention_norm)
        y = self.feed_forward(self._before(x, self.feed_forward_norm))
        return self._after(x, y, self.feed_forward_norm)

    def _before(self, x: Tensor, norm: nn.Module) -> Tensor:
        """What a part is given."""
        return norm(x) if self.norm_first else x

    def _after(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        """The stream after a part that gave y."""
        x = x + dropout(y, self.dropout, self.training)
        return x if self.norm_first else norm(x)
