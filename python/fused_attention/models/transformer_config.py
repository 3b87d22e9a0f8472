"""Settings of the encoder-decoder, ours and those of Marian and Pegasus in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fused_attention.masks import Band
from fused_attention.models.hf_settings import our_activation, refuse, require, their_activation
from fused_attention.nn.block import BlockConfig

# Pegasus is Marian with the norms first and one more after the last layers.
_CLASSES = {"marian": "MarianMTModel", "pegasus": "PegasusForConditionalGeneration"}


@dataclass(frozen=True)
class TransformerConfig:
    """An encoder-decoder's settings. The defaults are the base model of Vaswani et al. 2017.

    Raises:
        ValueError: two attributes contradict each other.
    """

    vocab_size: int = 37000
    target_vocab_size: int | None = None
    """None: source and target share a vocabulary and its embeddings."""
    dim: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    heads: int = 8
    hidden_dim: int = 2048
    """Features of the feed-forward parts' hidden layer."""
    norm_first: bool = False
    """Pre-LN: x + part(norm(x)); the paper's is norm(x + part(x)), post-LN."""
    final_norm: bool | None = None
    """A norm after the last encoder and the last decoder layer; None: if norm_first."""
    norm_eps: float = 1e-5
    activation: str = "relu"
    dropout: float = 0.1
    """Of embeddings and of what each part adds to the residual stream."""
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    label_smoothing: float = 0.1
    """Of the loss in training."""
    scale_embedding: bool = True
    """Whether embeddings are multiplied by sqrt(dim)."""
    interleaved_positions: bool = True
    """Sine and cosine in turns, as in the paper; Marian has all sines first."""
    max_length: int = 1024
    """Positions that transformers would make room for; there is no limit here."""
    tied: bool = True
    """Whether the logits are products with the target's embeddings."""
    logits_bias: bool = False
    pad_token: int = 0
    """Fills up rows; never generated."""
    start_token: int = 1
    """What a target begins with."""
    end_token: int = 2
    init_std: float | None = None
    """Of Hugging Face's models; None is Xavier's initial values, as in the paper."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing: must be in [0, 1), got {self.label_smoothing}")
        if self.dim % 2:
            raise ValueError(f"dim: must be even for sinusoidal positions, got {self.dim}")

    @property
    def has_final_norm(self) -> bool:
        return self.norm_first if self.final_norm is None else self.final_norm

    @property
    def logits_size(self) -> int:
        return self.target_vocab_size or self.vocab_size

    def block(self, *, decoder: bool) -> BlockConfig:
        """The settings of each encoder or decoder block."""
        return BlockConfig(
            self.dim,
            self.heads,
            self.hidden_dim,
            norm_eps=self.norm_eps,
            norm_first=self.norm_first,
            activation=self.activation,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            hidden_dropout=self.hidden_dropout,
            band=Band.causal() if decoder else Band.full(),
            cross_attention=decoder,
        )

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> TransformerConfig:
        """The settings in transformers' config.json of a "marian" or a "pegasus".

        Raises:
            ValueError: it is another family, or a setting is beyond this model.
        """
        family = settings.get("model_type")
        if family not in _CLASSES:
            refuse("model_type", f"must be one of {', '.join(_CLASSES)}", family)
        require(settings, static_position_embeddings=True, normalize_embedding=False)
        require(settings, normalize_before=family == "pegasus", extra_pos_embeddings=0)
        for part in ("layers", "attention_heads", "ffn_dim"):
            if part != "layers" and _both(settings, part)[0] != _both(settings, part)[1]:
                refuse(f"decoder_{part}", "must be the encoder's", settings[f"decoder_{part}"])
        shared = settings.get("share_encoder_decoder_embeddings", True)
        vocab_size = settings.get("vocab_size", 58101)
        layers = _both(settings, "layers")
        end = settings.get("eos_token_id", 0 if family == "marian" else 1)
        pad = settings.get("pad_token_id", 58100 if family == "marian" else 0)
        return cls(
            vocab_size=vocab_size,
            target_vocab_size=None if shared else settings.get("decoder_vocab_size") or vocab_size,
            dim=settings.get("d_model", 1024),
            encoder_layers=layers[0],
            decoder_layers=layers[1],
            heads=_both(settings, "attention_heads")[0],
            hidden_dim=_both(settings, "ffn_dim")[0],
            norm_first=family == "pegasus",
            activation=our_activation(settings, "activation_function"),
            dropout=settings.get("dropout", 0.1),
            attention_dropout=settings.get("attention_dropout", 0.0),
            hidden_dropout=settings.get("activation_dropout", 0.0),
            label_smoothing=0.0,
            scale_embedding=settings.get("scale_embedding", False),
            interleaved_positions=False,
            max_length=settings.get("max_position_embeddings", 1024),
            tied=settings.get("tie_word_embeddings", True),
            logits_bias=True,
            pad_token=pad,
            start_token=settings.get("decoder_start_token_id", pad),
            end_token=end,
            init_std=settings.get("init_std", 0.02),
        )

    def to_hf(self) -> dict[str, Any]:
        """The config.json of transformers.

        Raises:
            ValueError: transformers has no such model.
        """
        family = "pegasus" if self.norm_first else "marian"
        shared = self.target_vocab_size is None
        if family == "pegasus" and not shared:
            refuse("target_vocab_size", "must be None in Pegasus", self.target_vocab_size)
        settings: dict[str, Any] = {
            "model_type": family,
            "architectures": [_CLASSES[family]],
            "vocab_size": self.vocab_size,
            "decoder_vocab_size": self.logits_size,
            "share_encoder_decoder_embeddings": shared,
            "d_model": self.dim,
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            "activation_function": their_activation(self.activation),
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "activation_dropout": self.hidden_dropout,
            "scale_embedding": self.scale_embedding,
            "max_position_embeddings": self.max_length,
            "tie_word_embeddings": self.tied,
            "pad_token_id": self.pad_token,
            "decoder_start_token_id": self.start_token,
            "eos_token_id": self.end_token,
            "forced_eos_token_id": self.end_token,
            "init_std": 0.02 if self.init_std is None else self.init_std,
            "static_position_embeddings": True,
            "is_encoder_decoder": True,
        }
        for part in ("encoder", "decoder"):
            settings[f"{part}_attention_heads"] = self.heads
            settings[f"{part}_ffn_dim"] = self.hidden_dim
        # What only training or initial values depend on may differ there.
        free = ("label_smoothing", "init_std", "logits_bias", "final_norm")
        back = replace(self.from_hf(settings), **{name: getattr(self, name) for name in free})
        if back != self or self.has_final_norm != self.norm_first:
            raise ValueError(f"settings: {family} must be able to express them, got {self}")
        return settings


def _both(settings: Mapping[str, Any], part: str) -> tuple[int, int]:
    """Encoder's and decoder's number of something."""
    default = {"layers": 12, "attention_heads": 16, "ffn_dim": 4096}[part]
    encoder, decoder = (settings.get(f"{side}_{part}", default) for side in ("encoder", "decoder"))
    return encoder, decoder
