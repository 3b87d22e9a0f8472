"""The names of an encoder-decoder's weights: transformers' Marian and Pegasus, torch's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from fused_attention.models.transformer_config import TransformerConfig
from fused_attention.models.weights import Entry, Stacked, Table, module


@dataclass(frozen=True)
class _Row:
    """A vector that the checkpoint holds as a matrix of one row."""

    def load(self, theirs: Sequence[Tensor]) -> Sequence[Tensor]:
        return [tensor.squeeze(0) for tensor in theirs]

    def save(self, ours: Sequence[Tensor]) -> Sequence[Tensor]:
        return [tensor.unsqueeze(0) for tensor in ours]


def marian_table(config: TransformerConfig) -> Table:
    """Marian, and Pegasus where the norms come first."""
    entries = [*_marian_side(config, "encoder"), *_marian_side(config, "decoder")]
    copies = {}
    if config.target_vocab_size is None:
        entries += module("source", "model.shared", bias=False)
        target = "model.shared.weight"
        copies = {f"model.{side}.embed_tokens.weight": target for side in ("encoder", "decoder")}
    else:
        entries += module("source", "model.encoder.embed_tokens", bias=False)
        entries += module("target", "model.decoder.embed_tokens", bias=False)
        target = "model.decoder.embed_tokens.weight"
    if config.tied:
        copies["lm_head.weight"] = target
    else:
        entries += module("head", "lm_head", bias=False)
    if config.logits_bias:
        entries.append(Entry(("logits_bias",), ("final_logits_bias",), _Row()))
    prefix = (r"^(?=shared\.|encoder\.|decoder\.)", "model.")
    # Sinusoids, which need not be stored.
    ignored = (r"model\.(encoder|decoder)\.embed_positions\.weight$",)
    return Table(tuple(entries), copies, (prefix,), ignored)


def _marian_side(config: TransformerConfig, side: str) -> Iterator[Entry]:
    if config.has_final_norm:
        yield from module(f"{side}_norm", f"model.{side}.layer_norm")
    for layer in range(_layers(config, side)):
        ours, theirs = f"{side}.{layer}", f"model.{side}.layers.{layer}"
        parts = {"attention": "self_attn"}
        if side == "decoder":
            parts["cross_attention"] = "encoder_attn"
        for part, name in parts.items():
            heads = [f"{theirs}.{name}.{letter}_proj" for letter in "qkv"]
            yield from module(f"{ours}.{part}.in_proj", heads, Stacked((config.dim,) * 3))
            yield from module(f"{ours}.{part}.out_proj", f"{theirs}.{name}.out_proj")
            yield from module(f"{ours}.{part}_norm", f"{theirs}.{name}_layer_norm")
        yield from module(f"{ours}.feed_forward.up", f"{theirs}.fc1")
        yield from module(f"{ours}.feed_forward.down", f"{theirs}.fc2")
        yield from module(f"{ours}.feed_forward_norm", f"{theirs}.final_layer_norm")


def torch_table(config: TransformerConfig) -> Table:
    """torch.nn.Transformer: the layers, without embeddings and logits, which it does not have."""
    entries = [*_torch_side(config, "encoder"), *_torch_side(config, "decoder")]
    return Table(tuple(entries))


def _torch_side(config: TransformerConfig, side: str) -> Iterator[Entry]:
    if config.has_final_norm:
        yield from module(f"{side}_norm", f"{side}.norm")
    for layer in range(_layers(config, side)):
        ours, theirs = f"{side}.{layer}", f"{side}.layers.{layer}"
        parts = {"attention": "self_attn"}
        if side == "decoder":
            parts["cross_attention"] = "multihead_attn"
        for number, (part, name) in enumerate(parts.items(), 1):
            for kind in ("weight", "bias"):
                pair = (f"{ours}.{part}.in_proj.{kind}", f"{theirs}.{name}.in_proj_{kind}")
                yield Entry(pair[:1], pair[1:])
            yield from module(f"{ours}.{part}.out_proj", f"{theirs}.{name}.out_proj")
            yield from module(f"{ours}.{part}_norm", f"{theirs}.norm{number}")
        yield from module(f"{ours}.feed_forward.up", f"{theirs}.linear1")
        yield from module(f"{ours}.feed_forward.down", f"{theirs}.linear2")
        yield from module(f"{ours}.feed_forward_norm", f"{theirs}.norm{len(parts) + 1}")


def _layers(config: TransformerConfig, side: str) -> int:
    return config.encoder_layers if side == "encoder" else config.decoder_layers
