"""How Hugging Face's families of decoder-only models write a GPTConfig."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fused_attention.checks import wrong_value

Settings = Mapping[str, Any]
# Their names of activations, and ours.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# GPT-1's own table calls the approximation gelu.
GPT1_ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


class Family(NamedTuple):
    """Between a family's settings and the fields of a GPTConfig."""

    read: Callable[[Settings], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]]  # of a resolved config; may lose what has no name there
    table: str  # the function of tables/gpt.py


def _refuse(settings: Settings, **allowed: Any) -> None:
    """Settings that this model has no field for must have the value that changes nothing."""
    for name, value in allowed.items():
        if settings.get(name, value) not in (value, None):
            wrong_value(name, f"must be {value} for this model", settings[name])


def _activation(name: Any, known: Mapping[str, str]) -> str:
    if name not in known:
        wrong_value("activation", f"must be one of {', '.join(known)}", name)
    return known[name]


def _their_activation(name: str, known: Mapping[str, str]) -> str:
    return next((theirs for theirs, ours in known.items() if ours == name), name)


def _eos(settings: Settings) -> tuple[int, ...]:
    tokens = settings.get("eos_token_id")
    if tokens is None:
        return ()
    return tuple(tokens) if isinstance(tokens, (list, tuple)) else (int(tokens),)


def _write_eos(tokens: tuple[int, ...]) -> int | list[int] | None:
    return None if not tokens else tokens[0] if len(tokens) == 1 else list(tokens)


def _read_openai(settings: Settings) -> dict[str, Any]:
    """What GPT-1 and GPT-2 have in common."""
    return {
        "vocab_size": settings["vocab_size"],
        "dim": settings["n_embd"],
        "layers": settings["n_layer"],
        "heads": settings["n_head"],
        "max_length": settings["n_positions"],
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "dropout": settings.get("resid_pdrop", 0.1),
        "embedding_dropout": settings.get("embd_pdrop", 0.1),
        "attention_dropout": settings.get("attn_pdrop", 0.1),
        "initializer_range": settings.get("initializer_range", 0.02),
        "tied": settings.get("tie_word_embeddings", True),
        "eos_tokens": _eos(settings),
    }


def _write_openai(config: Any) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.dim,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": _write_eos(config.eos_tokens),
    }


def _read_gpt2(settings: Settings) -> dict[str, Any]:
    _refuse(settings, add_cross_attention=False, scale_attn_weights=True)
    activation = settings.get("activation_function", "gelu_new")
    return _read_openai(settings) | {
        "hidden_dim": settings.get("n_inner"),
        "activation": _activation(activation, ACTIVATIONS),
        "scale_by_layer": settings.get("scale_attn_by_inverse_layer_idx", False),
    }


def _write_gpt2(config: Any) -> dict[str, Any]:
    return _write_openai(config) | {
        "architectures": ["GPT2LMHeadModel"],
        "n_inner": config.hidden_dim,
        "activation_function": _their_activation(config.activation, ACTIVATIONS),
        "scale_attn_by_inverse_layer_idx": config.scale_by_layer,
    }


def _read_gpt1(settings: Settings) -> dict[str, Any]:
    activation = _activation(settings.get("afn", "gelu"), GPT1_ACTIVATIONS)
    return _read_openai(settings) | {"norm_first": False, "activation": activation}


def _write_gpt1(config: Any) -> dict[str, Any]:
    return _write_openai(config) | {
        "architectures": ["OpenAIGPTLMHeadModel"],
        "afn": _their_activation(config.activation, GPT1_ACTIVATIONS),
    }


def _read_llama(settings: Settings) -> dict[str, Any]:
    """Llama, and what its successors share with it."""
    _refuse(settings, pretraining_tp=1)
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    if scaling.get("rope_type", scaling.get("type", "default")) == "default":
        scaling = {}
    share = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor")) or 1.0
    _refuse({"partial_rotary_factor": share}, partial_rotary_factor=1.0)
    bias = settings.get("attention_bias", False)
    return {
        "vocab_size": settings["vocab_size"],
        "dim": settings["hidden_size"],
        "layers": settings["num_hidden_layers"],
        "heads": settings["num_attention_heads"],
        "max_length": settings["max_position_embeddings"],
        "kv_heads": settings.get("num_key_value_heads"),
        "head_dim": settings.get("head_dim"),
        "hidden_dim": settings["intermediate_size"],
        "positions": "rotary",
        "rope_base": float(rope.get("rope_theta") or settings.get("rope_theta") or 10000.0),
        "rope_scaling": scaling or None,
        "norm": "rms_norm",
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "activation": _activation(settings.get("hidden_act", "silu"), ACTIVATIONS),
        "gated": True,
        "bias": bias,
        "out_bias": bias,
        "feed_forward_bias": settings.get("mlp_bias", False),
        "attention_dropout": settings.get("attention_dropout", 0.0),
        "tied": settings.get("tie_word_embeddings", False),
        "initializer_range": settings.get("initializer_range", 0.02),
        "eos_tokens": _eos(settings),
    }


def _write_llama(config: Any) -> dict[str, Any]:
    rope = {"rope_theta": config.rope_base, "rope_type": "default", **(config.rope_scaling or {})}
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_length,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden_dim,
        "rope_parameters": rope,
        "rope_theta": config.rope_base,  # where versions before 5 look for it
        "rms_norm_eps": config.norm_eps,
        "hidden_act": _their_activation(config.activation, ACTIVATIONS),
        "attention_bias": config.bias,
        "mlp_bias": config.feed_forward_bias,
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.initializer_range,
        "bos_token_id": None,
        "eos_token_id": _write_eos(config.eos_tokens),
    }


def _read_mistral(settings: Settings) -> dict[str, Any]:
    fields = _read_llama({**settings, "attention_bias": False, "mlp_bias": False})
    return fields | {"windows": (settings.get("sliding_window"),)}


def _write_mistral(config: Any) -> dict[str, Any]:
    window = {"sliding_window": config.windows[0]}
    return _write_llama(config) | {"architectures": ["MistralForCausalLM"], **window}


def _read_qwen2(settings: Settings) -> dict[str, Any]:
    fields = _read_llama({**settings, "attention_bias": False, "mlp_bias": False})
    layers, window = int(fields["layers"]), None
    if settings.get("use_sliding_window", False):
        window = settings.get("sliding_window")
    first = settings.get("max_window_layers", 28)
    kinds = settings.get("layer_types") or [
        "sliding_attention" if layer >= first else "full_attention" for layer in range(layers)
    ]
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return fields | {"bias": True, "windows": windows}


def _write_qwen2(config: Any) -> dict[str, Any]:
    window = next((window for window in config.windows if window is not None), None)
    kinds = ("full_attention", "sliding_attention")
    return _write_llama(config) | {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": [kinds[window is not None] for window in config.windows],
    }


FAMILIES = {
    "gpt2": Family(_read_gpt2, _write_gpt2, "gpt2"),
    "openai-gpt": Family(_read_gpt1, _write_gpt1, "openai_gpt"),
    "llama": Family(_read_llama, _write_llama, "llama"),
    "mistral": Family(_read_mistral, _write_mistral, "llama"),
    "qwen2": Family(_read_qwen2, _write_qwen2, "llama"),
}
