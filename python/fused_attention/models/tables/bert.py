"""The names of BERT's and ModernBERT's weights in transformers' checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from fused_attention.models.bert_config import BERTConfig
from fused_attention.models.weights import Entry, Stacked, Table, module


def bert_table(config: BERTConfig) -> Table:
    """BERT with whatever heads it has.

    The plain model's names have no "bert." before them, as in the checkpoints of
    sentence-transformers; from either kind of checkpoint the other can be read.
    """
    heads = config.mlm_head or config.nsp_head
    root = "bert." if heads else ""
    entries = [
        *_embeddings(config, f"{root}embeddings"),
        *(e for n in range(config.layers) for e in _block(config, n, f"{root}encoder.layer.{n}")),
    ]
    copies = {}
    if config.pooler:
        entries += module("pooler", f"{root}pooler.dense")
    if config.mlm_head:
        entries += _mlm_head(config)
        if config.tied:
            copies["cls.predictions.decoder.bias"] = "cls.predictions.bias"
            copies["cls.predictions.decoder.weight"] = f"{root}embeddings.word_embeddings.weight"
    if config.nsp_head:
        entries += module("nsp_head", "cls.seq_relationship")
    prefix = (r"^(?=embeddings\.|encoder\.|pooler\.)", "bert.") if heads else (r"^bert\.", "")
    # TensorFlow's names of a norm's weights.
    norms = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
    # A buffer in older checkpoints, and a bias that an untied model has but does not add.
    ignored = [rf"{root}embeddings\.position_ids$"]
    ignored += [] if config.tied else [r"cls\.predictions\.bias$"]
    return Table(tuple(entries), copies, (prefix, *norms), tuple(ignored))


def _embeddings(config: BERTConfig, theirs: str) -> Iterator[Entry]:
    yield from module("tokens", f"{theirs}.word_embeddings", bias=False)
    yield from module("learned_positions", f"{theirs}.position_embeddings", bias=False)
    yield from module("token_types", f"{theirs}.token_type_embeddings", bias=False)
    yield from module("embedding_norm", f"{theirs}.LayerNorm")


def _block(config: BERTConfig, layer: int, theirs: str) -> Iterator[Entry]:
    ours = f"blocks.{layer}"
    heads = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
    yield from module(f"{ours}.attention.in_proj", heads, Stacked((config.dim,) * 3))
    yield from module(f"{ours}.attention.out_proj", f"{theirs}.attention.output.dense")
    yield from module(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
    yield from module(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
    yield from module(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
    yield from module(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")


def _mlm_head(config: BERTConfig) -> Iterator[Entry]:
    theirs = "cls.predictions"
    yield from module("mlm_head.dense", f"{theirs}.transform.dense")
    yield from module("mlm_head.norm", f"{theirs}.transform.LayerNorm")
    if not config.tied:
        yield from module("mlm_head.decoder", f"{theirs}.decoder", bias=False)
    bias = f"{theirs}.bias" if config.tied else f"{theirs}.decoder.bias"
    yield Entry(("mlm_head.bias",), (bias,))


def modernbert_table(config: BERTConfig) -> Table:
    """ModernBERT with or without its MLM head; the plain model's names have no "model."."""
    root = "model." if config.mlm_head else ""
    entries = [
        *module("tokens", f"{root}embeddings.tok_embeddings", bias=False),
        *module("embedding_norm", f"{root}embeddings.norm", bias=config.norm_bias),
        *(e for n in range(config.layers) for e in _modern_block(config, n, f"{root}layers.{n}")),
        *module("final_norm", f"{root}final_norm", bias=config.norm_bias),
    ]
    copies = {}
    prefix = (r"^model\.", "")
    if config.mlm_head:
        entries += _modern_mlm_head(config)
        if config.tied:
            copies["decoder.weight"] = "model.embeddings.tok_embeddings.weight"
        prefix = (r"^(?=embeddings\.|layers\.|final_norm\.)", "model.")
    return Table(tuple(entries), copies, (prefix,))


def _modern_block(config: BERTConfig, layer: int, theirs: str) -> Iterator[Entry]:
    ours, bias = f"blocks.{layer}", config.attention_bias
    if layer > 0:
        yield from module(f"{ours}.attention_norm", f"{theirs}.attn_norm", bias=config.norm_bias)
    yield from module(f"{ours}.attention.in_proj", f"{theirs}.attn.Wqkv", bias=bias)
    yield from module(f"{ours}.attention.out_proj", f"{theirs}.attn.Wo", bias=bias)
    yield from module(f"{ours}.feed_forward_norm", f"{theirs}.mlp_norm", bias=config.norm_bias)
    bias = config.feed_forward_bias
    yield from module(f"{ours}.feed_forward.up", f"{theirs}.mlp.Wi", bias=bias)
    yield from module(f"{ours}.feed_forward.down", f"{theirs}.mlp.Wo", bias=bias)


def _modern_mlm_head(config: BERTConfig) -> Iterator[Entry]:
    yield from module("mlm_head.dense", "head.dense", bias=config.head_bias)
    yield from module("mlm_head.norm", "head.norm", bias=config.norm_bias)
    if not config.tied:
        yield from module("mlm_head.decoder", "decoder", bias=False)
    if config.decoder_bias:
        yield Entry(("mlm_head.bias",), ("decoder.bias",))
