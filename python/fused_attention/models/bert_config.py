"""Settings of BERT and ModernBERT, ours and Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from fused_attention.masks import Band
from fused_attention.models.hf_settings import our_activation, refuse, require, their_activation
from fused_attention.nn.block import BlockConfig

# Which heads a class of transformers has: pooler, mlm_head, nsp_head.
_HEADS = {
    "BertModel": (True, False, False),
    "BertForMaskedLM": (False, True, False),
    "BertForNextSentencePrediction": (True, False, True),
    "BertForPreTraining": (True, True, True),
    "ModernBertModel": (False, False, False),
    "ModernBertForMaskedLM": (False, True, False),
}
_FULL, _LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class BERTConfig:
    """An encoder's settings. The defaults are those of BERT base with both pretraining heads.

    Raises:
        ValueError: two attributes contradict each other.
    """

    vocab_size: int = 30522
    dim: int = 768
    layers: int = 12
    heads: int = 12
    hidden_dim: int = 3072
    """Features of the feed-forward part's hidden layer."""
    max_length: int = 512
    token_types: int = 2
    """Segments that have an embedding; 0 is none."""
    positions: Literal["learned", "rotary"] = "learned"
    rotary_base: float = 160_000.0
    """Of the global layers."""
    local_rotary_base: float = 10_000.0
    local_layers: tuple[int, ...] = ()
    """Numbers of the layers in which a token sees only its neighbours."""
    window: int = 64
    """Keys to each side that a local layer sees."""
    norm_first: bool = False
    """ModernBERT's order: no norm before the first attention, one more after the last block."""
    norm_eps: float = 1e-12
    norm_bias: bool = True
    activation: str = "gelu"
    """Also tanh-approximated, gelu_tanh, in the code that Google trained with."""
    head_activation: str = "gelu"
    """Of the MLM head's hidden layer."""
    gated: bool = False
    """Whether the feed-forward part is a gated one (GeGLU)."""
    attention_bias: bool = True
    feed_forward_bias: bool = True
    head_bias: bool = True
    """Of the MLM head's hidden layer; decoder_bias is that of its logits."""
    decoder_bias: bool = True
    dropout: float = 0.1
    """Of what each part of a block adds to the residual stream."""
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    hidden_dropout: float = 0.0
    """Of the feed-forward part's hidden layer."""
    pad_token: int | None = 0
    init_std: float = 0.02
    pooler: bool = True
    mlm_head: bool = True
    nsp_head: bool = True
    tied: bool = True
    """Whether the MLM head's logits are products with the embeddings."""

    def __post_init__(self) -> None:
        if self.nsp_head and not self.pooler:
            raise ValueError("pooler: must be there for nsp_head, got False")
        if self.positions not in ("learned", "rotary"):
            raise ValueError(f"positions: must be learned or rotary, got {self.positions!r}")
        if self.window < 0:
            raise ValueError(f"window: must be at least 0, got {self.window}")
        wrong = [layer for layer in self.local_layers if not 0 <= layer < self.layers]
        if wrong:
            raise ValueError(f"local_layers: must be in [0, {self.layers}), got {wrong}")

    def block(self, layer: int) -> BlockConfig:
        """The settings of block number `layer`."""
        local = layer in self.local_layers
        return BlockConfig(
            self.dim,
            self.heads,
            self.hidden_dim,
            norm_eps=self.norm_eps,
            norm_bias=self.norm_bias,
            norm_first=self.norm_first,
            attention_norm=layer > 0 or not self.norm_first,
            activation=self.activation,
            gated=self.gated,
            bias=self.attention_bias,
            out_bias=self.attention_bias,
            feed_forward_bias=self.feed_forward_bias,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            hidden_dropout=self.hidden_dropout,
            band=Band.window(self.window, self.window) if local else Band.full(),
        )

    @classmethod
    def modern(cls, **changes: Any) -> BERTConfig:
        """ModernBERT base (Warner et al. 2024), with what is to differ from it."""
        return replace(cls.from_hf({"model_type": "modernbert"}), **changes)

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> BERTConfig:
        """The settings in transformers' config.json of a "bert" or a "modernbert".

        Raises:
            ValueError: it is another family, or a setting is beyond this model.
        """
        readers = {"bert": _from_bert, "modernbert": _from_modernbert}
        family = settings.get("model_type")
        if family not in readers:
            refuse("model_type", f"must be one of {', '.join(readers)}", family)
        config = readers[family](settings)
        names = settings.get("architectures") or ["BertModel" if family == "bert" else ""]
        # Classes for other tasks stand on the plain model, whose weights they contain.
        plain = _HEADS["BertModel" if family == "bert" else "ModernBertModel"]
        pooler, mlm_head, nsp_head = _HEADS.get(names[0], plain)
        return replace(config, pooler=pooler, mlm_head=mlm_head, nsp_head=nsp_head)

    def to_hf(self) -> dict[str, Any]:
        """The config.json of transformers.

        Raises:
            ValueError: transformers has no such model.
        """
        family, settings = (
            ("ModernBert", _to_modernbert(self)) if self.norm_first else ("Bert", _to_bert(self))
        )
        back = BERTConfig.from_hf(settings)
        heads = (self.pooler, self.mlm_head, self.nsp_head)
        names = [n for n, has in _HEADS.items() if has == heads and n.startswith(family)]
        if not names:
            raise ValueError(f"pooler, mlm_head, nsp_head: {family} has no such class, got {heads}")
        back = replace(back, pooler=heads[0], mlm_head=heads[1], nsp_head=heads[2])
        if back != self:
            raise ValueError(f"settings: {family} must be able to express them, got {self}")
        return {"architectures": names, **settings}


def _from_bert(settings: Mapping[str, Any]) -> BERTConfig:
    require(
        settings,
        is_decoder=False,
        add_cross_attention=False,
        position_embedding_type="absolute",
    )
    activation = our_activation(settings, "hidden_act")
    dropout = settings.get("hidden_dropout_prob", 0.1)
    return BERTConfig(
        vocab_size=settings.get("vocab_size", 30522),
        dim=settings.get("hidden_size", 768),
        layers=settings.get("num_hidden_layers", 12),
        heads=settings.get("num_attention_heads", 12),
        hidden_dim=settings.get("intermediate_size", 3072),
        max_length=settings.get("max_position_embeddings", 512),
        token_types=settings.get("type_vocab_size", 2),
        norm_eps=settings.get("layer_norm_eps", 1e-12),
        activation=activation,
        head_activation=activation,
        dropout=dropout,
        embedding_dropout=dropout,
        attention_dropout=settings.get("attention_probs_dropout_prob", 0.1),
        pad_token=settings.get("pad_token_id", 0),
        init_std=settings.get("initializer_range", 0.02),
        tied=settings.get("tie_word_embeddings", True),
    )


def _to_bert(config: BERTConfig) -> dict[str, Any]:
    if config.token_types < 1:
        refuse("token_types", "must be at least 1 in transformers", config.token_types)
    return {
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden_dim,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": their_activation(config.activation),
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "pad_token_id": config.pad_token,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied,
    }


def _from_modernbert(settings: Mapping[str, Any]) -> BERTConfig:
    layers = settings.get("num_hidden_layers", 22)
    every = settings.get("global_attn_every_n_layers", 3)
    default = [_LOCAL if layer % every else _FULL for layer in range(layers)]
    types = settings.get("layer_types") or default
    bias = settings.get("norm_bias", False)
    return BERTConfig(
        vocab_size=settings.get("vocab_size", 50368),
        dim=settings.get("hidden_size", 768),
        layers=layers,
        heads=settings.get("num_attention_heads", 12),
        hidden_dim=settings.get("intermediate_size", 1152),
        max_length=settings.get("max_position_embeddings", 8192),
        token_types=0,
        positions="rotary",
        rotary_base=_rotary_base(settings, _FULL, "global_rope_theta", 160_000.0),
        local_rotary_base=_rotary_base(settings, _LOCAL, "local_rope_theta", 10_000.0),
        local_layers=tuple(n for n, kind in enumerate(types) if kind == _LOCAL),
        window=settings.get("local_attention", 128) // 2,
        norm_first=True,
        norm_eps=settings.get("norm_eps", 1e-5),
        norm_bias=bias,
        activation=our_activation(settings, "hidden_activation"),
        head_activation=our_activation(settings, "classifier_activation"),
        gated=True,
        attention_bias=settings.get("attention_bias", False),
        feed_forward_bias=settings.get("mlp_bias", False),
        head_bias=settings.get("classifier_bias", False),
        decoder_bias=settings.get("decoder_bias", True),
        dropout=0.0,
        embedding_dropout=settings.get("embedding_dropout", 0.0),
        attention_dropout=settings.get("attention_dropout", 0.0),
        hidden_dropout=settings.get("mlp_dropout", 0.0),
        pad_token=settings.get("pad_token_id", 50283),
        init_std=settings.get("initializer_range", 0.02),
        tied=settings.get("tie_word_embeddings", True),
    )


def _rotary_base(settings: Mapping[str, Any], kind: str, old: str, default: float) -> float:
    """Today's checkpoints have a dict for each kind of layer, older ones a number."""
    ropes = settings.get("rope_parameters") or {}
    rope = ropes.get(kind) or {}
    require(rope, rope_type="default")
    require(settings, rope_scaling=None)
    return float(rope.get("rope_theta") or settings.get(old) or default)


def _to_modernbert(config: BERTConfig) -> dict[str, Any]:
    bases = {_FULL: config.rotary_base, _LOCAL: config.local_rotary_base}
    kinds = [_LOCAL if n in config.local_layers else _FULL for n in range(config.layers)]
    return {
        "model_type": "modernbert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden_dim,
        "max_position_embeddings": config.max_length,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()
        },
        "layer_types": kinds,
        "local_attention": 2 * config.window,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "hidden_activation": their_activation(config.activation),
        "classifier_activation": their_activation(config.head_activation),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
        "classifier_bias": config.head_bias,
        "decoder_bias": config.decoder_bias,
        "embedding_dropout": config.embedding_dropout,
        "attention_dropout": config.attention_dropout,
        "mlp_dropout": config.hidden_dropout,
        "pad_token_id": config.pad_token,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied,
    }
