"""What a GPT is made of, and the same as Hugging Face's families write it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fused_attention.checks import wrong_value
from fused_attention.masks import Band
from fused_attention.models.gpt_families import FAMILIES
from fused_attention.models.rotary_settings import rotary_scaling
from fused_attention.nn import BlockConfig, Rotary

PositionName = Literal["learned", "sinusoidal", "rotary", "alibi", "none"]
POSITIONS = ("learned", "sinusoidal", "rotary", "alibi", "none")


@dataclass(frozen=True)
class GPTConfig:
    """A decoder-only language model; the defaults are those of GPT-2 small.

    Raises:
        ValueError: an attribute is out of its range.
    """

    vocab_size: int = 50257
    dim: int = 768
    layers: int = 12
    heads: int = 12
    max_length: int = 1024
    """Tokens that it was made for; learned positions end there."""
    kv_heads: int | None = None
    """Heads of key and value, default heads."""
    head_dim: int | None = None
    """Default dim / heads."""
    hidden_dim: int | None = None
    """Of the feed-forward part, default 4 * dim."""
    windows: tuple[int | None, ...] = (None,)
    """Tokens that a layer's queries see, themselves counted; None is all. Repeated over the
    layers: (512, 512, 512, None) is three local layers and a global one, and so on."""
    positions: PositionName = "learned"
    rope_base: float = 10000.0
    rope_dim: int | None = None
    """How many elements of a head rotary positions turn, default all."""
    rope_interleaved: bool = False
    rope_scaling: Mapping[str, Any] | None = None
    """As Hugging Face writes it: {"rope_type": "linear", "factor": 4.0}."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_eps: float = 1e-5
    norm_first: bool = True
    """False is GPT-1's x = norm(x + part(x)), which has no norm at the end either."""
    activation: str = "gelu_tanh"
    gated: bool = False
    bias: bool = True
    """Of query, key and value."""
    out_bias: bool = True
    """Of the attention's output."""
    feed_forward_bias: bool = True
    scale_by_layer: bool = False
    """Scores of layer n, counted from 1, are divided by n too."""
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    tied: bool = True
    """Whether the head shares the embedding's weights."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights; those that end a residual branch get less."""
    eos_tokens: tuple[int, ...] = ()
    """Tokens that end a text."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "max_length"):
            if getattr(self, name) < 1:
                wrong_value(name, "must be at least 1", getattr(self, name))
        if self.positions not in POSITIONS:
            wrong_value("positions", f"must be one of {', '.join(POSITIONS)}", self.positions)
        if not self.windows or any(window is not None and window < 1 for window in self.windows):
            wrong_value("windows", "must hold None or numbers of at least 1", self.windows)
        rotary = self.rotary()
        if rotary is not None:
            rotary.check_head_dim(self.head_dim or self.dim // self.heads)
        for layer in range(self.layers):
            self.block(layer)

    def window(self, layer: int) -> int | None:
        """Tokens that the queries of a layer see."""
        return self.windows[layer % len(self.windows)]

    def rotary(self) -> Rotary | None:
        if self.positions != "rotary":
            return None
        scaling = rotary_scaling(self.rope_scaling, self.max_length)
        return Rotary(self.rope_base, self.rope_dim, self.rope_interleaved, scaling)

    def block(self, layer: int) -> BlockConfig:
        """The configuration of a layer's block."""
        window, head_dim = self.window(layer), self.head_dim or self.dim // max(1, self.heads)
        return BlockConfig(
            dim=self.dim,
            heads=self.heads,
            hidden_dim=4 * self.dim if self.hidden_dim is None else self.hidden_dim,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            norm=self.norm,
            norm_eps=self.norm_eps,
            norm_first=self.norm_first,
            activation=self.activation,
            gated=self.gated,
            bias=self.bias,
            out_bias=self.out_bias,
            feed_forward_bias=self.feed_forward_bias,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            band=Band.causal() if window is None else Band.sliding(window),
            scale=head_dim**-0.5 / (layer + 1) if self.scale_by_layer else None,
            alibi=self.positions == "alibi",
        )

    def resolved(self) -> GPTConfig:
        """The same with numbers instead of defaults, and a window for each layer."""
        return dataclasses.replace(
            self,
            kv_heads=self.kv_heads or self.heads,
            head_dim=self.head_dim or self.dim // self.heads,
            hidden_dim=self.hidden_dim or 4 * self.dim,
            windows=tuple(self.window(layer) for layer in range(self.layers)),
        )

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> GPTConfig:
        """The configuration that a config.json of Hugging Face holds.

        Raises:
            ValueError: the family is not known here, or the settings are beyond this model.
        """
        family = settings.get("model_type")
        if family not in FAMILIES:
            wrong_value("model_type", f"must be one of {', '.join(FAMILIES)}", family)
        return cls(**FAMILIES[str(family)].read(settings))

    def to_hf(self) -> dict[str, Any]:
        """The settings as the first family of Hugging Face's writes them that can express them.

        Raises:
            ValueError: none can.
        """
        for name, family in FAMILIES.items():
            settings = {"model_type": name, **family.write(self.resolved())}
            try:
                again = GPTConfig.from_hf(settings)
            except ValueError:
                continue
            if again.resolved() == self.resolved():
                return settings
        wrong_value("config", "must be what a family of Hugging Face's can express", self)
