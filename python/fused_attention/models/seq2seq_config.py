"""Settings of the recurrent encoder-decoder, and those of the three papers that it follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fused_attention.checks import wrong_value
from fused_attention.models.hf_settings import refuse

CELLS = ("lstm", "gru", "cho-gru")
GLOBAL = ("luong-dot", "luong-general", "luong-concat", "luong-location")
LOCAL = ("local-m", "local-p")
ATTENTIONS = ("none", "bahdanau", *GLOBAL, *LOCAL)
INITS = ("torch", "uniform", "bahdanau")


@dataclass(frozen=True)
class Seq2SeqConfig:
    """A recurrent encoder-decoder's settings; `sutskever`, `bahdanau` and `luong` are the papers'.

    Raises:
        ValueError: an attribute is out of its range, or two contradict each other.
    """

    vocab_size: int = 30000
    target_vocab_size: int | None = None
    """None: source and target share a vocabulary and its embeddings."""
    embedding_dim: int = 256
    cell: str = "gru"
    """lstm, gru, or cho-gru, which resets the state and not a product, as published; slower."""
    dim: int = 256
    """Features of the decoder's state."""
    encoder_dim: int | None = None
    """Of the encoder's state, in each direction; None: so that all directions make up dim."""
    encoder_layers: int = 1
    decoder_layers: int = 1
    bidirectional: bool = True
    """Whether the encoder also reads the source from its end."""
    reverse_source: bool = False
    """Whether the encoder reads the source backwards; its states stay in the source's order."""
    attention: str = "bahdanau"
    """none, bahdanau, luong-dot, luong-general, luong-concat, luong-location, local-m, local-p."""
    attention_dim: int | None = None
    """Of the hidden layer of bahdanau and concat; None: dim."""
    normed: bool = False
    """bahdanau: v is normed, with a learned length and a bias, as in GNMT."""
    local_score: str = "general"
    """Of local-m and local-p: dot, general, or (local-m) concat."""
    width: float = 10.0
    """D: local-m and local-p see so many tokens to each side."""
    sigma: float | None = None
    """Of local-p's Gaussian, in tokens; None: width / 2."""
    last_place: bool = False
    """Whether local-p's places end at the last token, S - 1, as in its authors' program, not S."""
    location_length: int = 100
    """Source tokens that luong-location can look at."""
    input_feeding: bool = False
    """Whether a step also gets the attentional vector of the step before (Luong et al., 3.3)."""
    bridge: str | None = None
    """What the decoder begins with: "copy", the encoder's final states layer by layer, or "tanh",
    tanh(W h) of the last one's state at the first token (with one direction: after its last).
    None: tanh with bahdanau, else copy."""
    maxout: int = 0
    """bahdanau: units of the maxout layer before the logits; 0: these are linear in the decoder's
    state, the context and the embedding of the token before."""
    dropout: float = 0.0
    """Of embeddings, between recurrent layers, and of what the logits are made of."""
    label_smoothing: float = 0.0
    """Of the loss in training."""
    init: str = "torch"
    """Initial values: torch's own, uniform in +-init_range, or those of Bahdanau et al., B.1."""
    init_range: float = 0.08
    pad_token: int = 0
    """Fills up rows; never generated."""
    start_token: int = 1
    """What a target begins with."""
    end_token: int = 2

    def __post_init__(self) -> None:
        _check_choice("cell", self.cell, CELLS)
        _check_choice("attention", self.attention, ATTENTIONS)
        _check_choice("init", self.init, INITS)
        _check_choice("bridge", self.bridge, ("copy", "tanh", None))
        sizes = ("vocab_size", "embedding_dim", "dim", "encoder_layers", "decoder_layers")
        for name in (*sizes, "location_length"):
            if getattr(self, name) < 1:
                wrong_value(name, "must be at least 1", getattr(self, name))
        for name in ("pad_token", "start_token", "end_token"):
            if not 0 <= getattr(self, name) < self.logits_size:
                rule = f"must be a token of the target, in [0, {self.logits_size})"
                wrong_value(name, rule, getattr(self, name))
        for name in ("dropout", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                wrong_value(name, "must be in [0, 1)", getattr(self, name))
        for name in ("init_range", "width"):
            if not 0.0 <= getattr(self, name) < math.inf:
                wrong_value(name, "must be finite and at least 0", getattr(self, name))
        self._check_parts()

    def _check_parts(self) -> None:
        """What goes with what."""
        if self.encoder_dim is None and self.dim % self.directions:
            rule = "must be even for two directions, or encoder_dim be given"
            wrong_value("dim", rule, self.dim)
        if self.bridge_kind == "copy":
            if self.encoder_layers != self.decoder_layers:
                rule = f"must be encoder_layers {self.encoder_layers} to copy states"
                wrong_value("decoder_layers", rule, self.decoder_layers)
            if self.memory_dim != self.dim:
                rule = f"must be the encoder's {self.memory_dim} features to copy states"
                wrong_value("dim", rule, self.dim)
        if self.input_feeding and self.attention in ("none", "bahdanau"):
            rule = "needs one of Luong's attentions, whose vectors are fed"
            wrong_value("input_feeding", rule, self.attention)
        if self.normed and self.attention != "bahdanau":
            wrong_value("normed", "needs attention bahdanau", self.attention)
        if self.maxout < 0 or (self.maxout and self.attention != "bahdanau"):
            got = f"{self.maxout} with {self.attention}"
            wrong_value("maxout", "must be 0, or above with attention bahdanau", got)
        if self.attention in LOCAL:
            scores = ("dot", "general", "concat")[: 3 if self.attention == "local-m" else 2]
            _check_choice("local_score", self.local_score, scores)

    @property
    def directions(self) -> int:
        """Of the encoder."""
        return 2 if self.bidirectional else 1

    @property
    def encoder_size(self) -> int:
        """Features of the encoder's state in one direction."""
        return self.dim // self.directions if self.encoder_dim is None else self.encoder_dim

    @property
    def memory_dim(self) -> int:
        """Features of the encoder's states, all directions together."""
        return self.directions * self.encoder_size

    @property
    def bridge_kind(self) -> str:
        default = "tanh" if self.attention == "bahdanau" else "copy"
        return default if self.bridge is None else self.bridge

    @property
    def score(self) -> str:
        """Of Luong's attentions."""
        local = self.attention in LOCAL
        return self.local_score if local else self.attention.removeprefix("luong-")

    @property
    def window(self) -> str:
        """Of Luong's attentions."""
        return self.attention if self.attention in LOCAL else "global"

    @property
    def logits_size(self) -> int:
        return self.target_vocab_size or self.vocab_size

    @classmethod
    def sutskever(cls, **changes: Any) -> Seq2SeqConfig:
        """Sutskever et al. 2014: four LSTMs of 1000 cells, no attention, the source reversed."""
        settings: dict[str, Any] = {
            "vocab_size": 160000,
            "target_vocab_size": 80000,
            "embedding_dim": 1000,
            "cell": "lstm",
            "dim": 1000,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "bidirectional": False,
            "reverse_source": True,
            "attention": "none",
            "init": "uniform",
            "init_range": 0.08,
        }
        return cls(**{**settings, **changes})

    @classmethod
    def bahdanau(cls, **changes: Any) -> Seq2SeqConfig:
        """Bahdanau et al. 2015: RNNsearch, GRUs of 1000 units and a maxout layer of 500."""
        settings: dict[str, Any] = {
            "vocab_size": 30000,
            "target_vocab_size": 30000,
            "embedding_dim": 620,
            "cell": "cho-gru",
            "dim": 1000,
            "encoder_dim": 1000,
            "attention": "bahdanau",
            "attention_dim": 1000,
            "maxout": 500,
            "init": "bahdanau",
        }
        return cls(**{**settings, **changes})

    @classmethod
    def luong(cls, **changes: Any) -> Seq2SeqConfig:
        """Luong et al. 2015, its best single system: local-p with general scores, input feeding."""
        settings: dict[str, Any] = {
            "vocab_size": 50000,
            "target_vocab_size": 50000,
            "embedding_dim": 1000,
            "cell": "lstm",
            "dim": 1000,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "bidirectional": False,
            "reverse_source": True,
            "attention": "local-p",
            "input_feeding": True,
            "dropout": 0.2,
            "init": "uniform",
            "init_range": 0.1,
        }
        return cls(**{**settings, **changes})

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> Seq2SeqConfig:
        """Never returns: transformers has no recurrent encoder-decoders.

        Raises:
            ValueError: always.
        """
        refuse("model_type", "must be fused_attention", settings.get("model_type"))

    def to_hf(self) -> dict[str, Any]:
        """Never returns: transformers has no recurrent encoder-decoders.

        Raises:
            ValueError: always.
        """
        raise ValueError("settings: transformers has no recurrent encoder-decoders")


def _check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        wrong_value(name, f"must be one of {', '.join(map(str, choices))}", repr(value))
