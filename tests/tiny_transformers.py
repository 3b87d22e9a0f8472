"""Hugging Face models with random weights, small enough for a test, and batches for them.

Their weights are larger than those that models start with: attention with scores near 0 would not
show a wrong scale, softcap or bias.
"""

from __future__ import annotations

import copy
import functools
import os
from typing import Any

import pytest
import torch
from packaging import version
from torch import Tensor

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import transformers  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

VOCABULARY = 64
_COMMON = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_DECODER = {**_COMMON, **_SIZES, "num_key_value_heads": 2, "head_dim": 8}
_LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"]
_BUILDERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _DECODER),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_DECODER, "sliding_window": 4}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            **_DECODER,
            "sliding_window": 4,
            "layer_types": _LOCAL_AND_GLOBAL,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_DECODER, "sliding_window": 4, "layer_types": _LOCAL_AND_GLOBAL},
    ),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            **_DECODER,
            "sliding_window": 4,
            "layer_types": _LOCAL_AND_GLOBAL,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 40},
    ),
    "bert": ("BertConfig", "BertForMaskedLM", {**_COMMON, **_SIZES}),
    "modernbert": (
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        {
            **_COMMON,
            **_SIZES,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "local_attention": 6,
            "global_attn_every_n_layers": 2,
        },
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            **_COMMON,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 40,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 1,
        },
    ),
    "bart": (
        "BartConfig",
        "BartForConditionalGeneration",
        {
            **_COMMON,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 40,
            "decoder_ffn_dim": 40,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 1,
            "forced_eos_token_id": None,
        },
    ),
}
_ALL = version.parse("5.23")  # every model here takes attention functions
DECODERS = ("llama", "mistral", "gemma2", "gemma3", "gpt_oss", "gpt2")
ENCODERS = ("bert", "modernbert")
SEQ2SEQ = ("t5", "bart")
MODELS = (*DECODERS, *ENCODERS, *SEQ2SEQ)
_NO_DROPOUT = ("dropout", "attention_dropout", "activation_dropout", "dropout_rate")
_NO_DROPOUT += ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_NO_DROPOUT += ("hidden_dropout_prob", "attention_probs_dropout_prob")


def config(name: str, **changes: Any) -> Any:
    """The tiny configuration of a model, without dropout."""
    class_name, _, settings = _BUILDERS[name]
    config_class = getattr(transformers, class_name)
    defaults = config_class()
    dropout = {key: 0.0 for key in _NO_DROPOUT if hasattr(defaults, key)}
    return config_class(**{**dropout, **settings, **changes})


def model(name: str, **changes: Any) -> Any:
    """A model in evaluation mode, with the same weights every time."""
    return copy.deepcopy(_built(name, tuple(sorted(changes.items())))).eval()


@functools.cache
def _built(name: str, changes: tuple[tuple[str, Any], ...]) -> Any:
    torch.manual_seed(0)
    built = getattr(transformers, _BUILDERS[name][1])(config(name, **dict(changes)))
    if name == "gpt_oss":
        built.set_experts_implementation("eager")  # the fused one has no fp64
    return spread(built)


def spread(one: Any) -> Any:
    """The model with weights far enough apart that every term of its formulas counts."""
    with torch.no_grad():
        for parameter in one.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return one


def tokens(batch: int = 3, length: int = 12, seed: int = 0) -> Tensor:
    """int64 [batch, length], none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)


def padding(kind: str, batch: int = 3, length: int = 12) -> Tensor | None:
    """An attention mask, int64 [batch, length]: the first rows are padded, the last is not."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    if kind == "none":
        return None
    for row, padded in enumerate((5, 2)):
        if kind == "right":
            mask[row, length - padded :] = 0
        elif kind == "left":
            mask[row, :padded] = 0
        else:
            assert kind == "holes", kind
            mask[row, 3 : 3 + padded] = 0
    return mask


def batch(name: str, kind: str = "none", seed: int = 0) -> dict[str, Tensor]:
    """What the model `name` is called with."""
    inputs = {"input_ids": tokens(seed=seed)}
    mask = padding(kind)
    if mask is not None:
        inputs["attention_mask"] = mask
    if name in SEQ2SEQ:
        inputs["decoder_input_ids"] = tokens(length=7, seed=seed + 1)
    return inputs


def real_rows(name: str, inputs: dict[str, Tensor]) -> Tensor:
    """bool, one for each row of the logits: those that are not padding."""
    if name in SEQ2SEQ:
        return torch.ones_like(inputs["decoder_input_ids"], dtype=torch.bool)
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]).bool() if mask is None else mask.bool()


def logits_and_gradients(
    one: Any, inputs: dict[str, Tensor], rows: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Logits of the rows [rows, vocabulary], and all parameters' gradients as one vector."""
    one.zero_grad()
    logits = one(**inputs, **options).logits[rows]
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    gradients = [p.grad.flatten() for p in one.parameters() if p.grad is not None]
    return logits.detach(), torch.cat(gradients)


def with_attention(one: Any, name: str) -> Any:
    """A copy of the model that computes attention by `name`.

    Skips the test where an old transformers has a model, such as T5, with its own attention only.
    """
    if not one._can_set_attn_implementation() and version.parse(transformers.__version__) < _ALL:
        pytest.skip(f"{type(one).__name__} of this transformers has its own attention only")
    other = copy.deepcopy(one)
    other.set_attn_implementation(name)
    assert other.config._attn_implementation == name
    return other


def checkpoint(one: Any, **options: Any) -> None:
    """Switch on gradient checkpointing, by whichever name this transformers knows it."""
    enable = getattr(one, "activation_checkpointing_enable", None)
    (enable or one.gradient_checkpointing_enable)(options or None)


def exact_model(one: Any) -> Any:
    """The model in fp64, attention and softmax too, which transformers' eager attention is not."""
    return with_attention(one, _EXACT).double()


def _exact_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The formulas, with the bool masks of transformers."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    scores = scores.masked_fill(~attention_mask, -torch.inf)
    if s_aux is not None:
        sinks = s_aux.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sinks), -1)
    probabilities = torch.where(scores.amax(-1, keepdim=True) > -torch.inf, scores, 0).softmax(-1)
    out = probabilities[..., : key.shape[2]] @ value
    return out.transpose(1, 2).contiguous(), None


def _exact_mask(*args: Any, **options: Any) -> Tensor:
    options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor = sdpa_mask(*args, **options)
    return mask


_EXACT = "exact_formulas"
transformers.AttentionInterface.register(_EXACT, _exact_attention)
transformers.AttentionMaskInterface.register(_EXACT, _exact_mask)
