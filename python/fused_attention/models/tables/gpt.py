"""Weights of decoder-only models: GPT-1, GPT-2, and Llama with its successors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fused_attention.models.weights import TRANSPOSED, Entry, Stacked, Table, module


def gpt2(config: Any) -> Table:
    """Of GPT2LMHeadModel, and of GPT2Model, whose names lack the prefix."""
    return _openai(config, "wte", "wpe", [*module("norm", "transformer.ln_f")])


def openai_gpt(config: Any) -> Table:
    """Of OpenAIGPTLMHeadModel, and of OpenAIGPTModel, whose names lack the prefix."""
    return _openai(config, "tokens_embed", "positions_embed", [])


def _openai(config: Any, tokens: str, positions: str, last: list[Entry]) -> Table:
    """GPT-1's and GPT-2's matrices are [in, out], query, key and value side by side."""
    entries = [
        *module("embedding", f"transformer.{tokens}", bias=False),
        *module("positions", f"transformer.{positions}", bias=False),
        *last,
    ]
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        entries += [
            *module(f"{ours}.attention_norm", f"{theirs}.ln_1"),
            *module(f"{ours}.attention.in_proj", f"{theirs}.attn.c_attn", TRANSPOSED),
            *module(f"{ours}.attention.out_proj", f"{theirs}.attn.c_proj", TRANSPOSED),
            *module(f"{ours}.feed_forward_norm", f"{theirs}.ln_2"),
            *module(f"{ours}.feed_forward.up", f"{theirs}.mlp.c_fc", TRANSPOSED),
            *module(f"{ours}.feed_forward.down", f"{theirs}.mlp.c_proj", TRANSPOSED),
        ]
    return Table(
        (*entries, *_head(config)),
        copies=_tied(config, f"transformer.{tokens}.weight"),
        older=((rf"^({tokens}|{positions}|h|ln_f)\.", r"transformer.\1."),),
        # The causal mask, which older versions stored.
        ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias$",),
    )


def llama(config: Any) -> Table:
    """Of LlamaForCausalLM, MistralForCausalLM and Qwen2ForCausalLM."""
    config = config.resolved()
    sizes = tuple(heads * config.head_dim for heads in (config.heads, *2 * (config.kv_heads,)))
    entries = [
        *module("embedding", "model.embed_tokens", bias=False),
        *module("norm", "model.norm", bias=False),
    ]
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        heads = [f"{theirs}.self_attn.{name}_proj" for name in "qkv"]
        factors = [f"{theirs}.mlp.{name}_proj" for name in ("gate", "up")]
        hidden, mlp_bias = Stacked(2 * (config.hidden_dim,)), config.feed_forward_bias
        out, down = f"{theirs}.self_attn.o_proj", f"{theirs}.mlp.down_proj"
        after = f"{theirs}.post_attention_layernorm"
        entries += [
            *module(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=False),
            *module(f"{ours}.attention.in_proj", heads, Stacked(sizes), bias=config.bias),
            *module(f"{ours}.attention.out_proj", out, bias=config.out_bias),
            *module(f"{ours}.feed_forward_norm", after, bias=False),
            *module(f"{ours}.feed_forward.up", factors, hidden, bias=mlp_bias),
            *module(f"{ours}.feed_forward.down", down, bias=mlp_bias),
        ]
    return Table(
        (*entries, *_head(config)),
        copies=_tied(config, "model.embed_tokens.weight"),
        # Older versions stored the frequencies.
        ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$",),
    )


def _head(config: Any) -> Iterator[Entry]:
    if not config.tied:
        yield from module("head", "lm_head", bias=False)


def _tied(config: Any, embedding: str) -> dict[str, str]:
    return {"lm_head.weight": embedding} if config.tied else {}


TABLES: dict[str, Callable[[Any], Table]] = {
    "gpt2": gpt2,
    "openai_gpt": openai_gpt,
    "llama": llama,
}
