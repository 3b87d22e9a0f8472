"""GPT-1, GPT-2, Llama and its successors: transformers' outputs, its files, and what only we do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from budget import assert_within_budget
from torch import Tensor, nn

from fused_attention.models.gpt import GPT
from fused_attention.models.gpt_config import GPTConfig
from fused_attention.nn import Sequences, pack, record_attention_maps

VOCABULARY, LENGTH = 99, 50
TOKENS = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
OPENAI = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
NO_EOS = {"bos_token_id": None, "eos_token_id": None}
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,  # shorter than TOKENS, for what scales beyond it
    **NO_EOS,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Family, the class and the settings of transformers' model.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-1": ("OpenAIGPT", OPENAI | NO_EOS),
    "GPT-2": ("GPT2", OPENAI | NO_EOS),
    "GPT-2, scaled by layer, erf": (
        "GPT2",
        OPENAI
        | NO_EOS
        | {"scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu", "n_inner": 70},
    ),
    "Llama": ("Llama", LLAMA),
    "Llama 3, tied, biases": (
        "Llama",
        LLAMA
        | {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_theta": 5e5, **LLAMA3},
        },
    ),
    "Llama, dynamic": (
        "Llama",
        LLAMA | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}},
    ),
    "Mistral, window, wide heads": ("Mistral", LLAMA | {"sliding_window": 7, "head_dim": 10}),
    "Qwen2, windows in some layers": (
        "Qwen2",
        LLAMA | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
}


def theirs(name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    kind, settings = MODELS[name]
    causal = {"OpenAIGPT": "LMHeadModel", "GPT2": "LMHeadModel"}.get(kind, "ForCausalLM")
    config = getattr(transformers, f"{kind}Config")(**settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}{causal}")(config).eval()
    for parameter in model.parameters():  # biases begin at 0, where they could be forgotten
        nn.init.normal_(parameter, 0.2 if parameter.dim() == 1 else 0.0, 0.2)
    return model


def ours(model: Any) -> GPT:
    made = GPT(GPTConfig.from_hf(model.config.to_dict())).eval()
    made.load_hf_state_dict(model.state_dict())
    return made


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_is_transformers_model(name: str) -> None:
    their_model = theirs(name)
    model = ours(their_model)
    found, exact = model(TOKENS), their_model(TOKENS).logits
    assert (found - exact).abs().max() <= 1e-5
    again = type(their_model)(their_model.config).eval()
    missing = again.load_state_dict(model.hf_state_dict(), strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"} and (not missing or model.config.tied)
    again.tie_weights()
    assert torch.equal(again(TOKENS).logits, exact)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_files_of_both_sides(name: str, tmp_path: Path) -> None:
    their_model = theirs(name)
    their_model.save_pretrained(tmp_path / "theirs")
    model = GPT.from_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours", max_shard_bytes=20_000)
    exact = their_model(TOKENS).logits
    assert (model(TOKENS) - exact).abs().max() <= 1e-5
    again = type(their_model).from_pretrained(tmp_path / "ours").eval()
    assert type(again.config) is type(their_model.config)
    assert torch.equal(again(TOKENS).logits, exact)


@pytest.mark.parametrize("name", ["GPT-2", "Mistral, window, wide heads"])
@torch.no_grad()
def test_bfloat16_is_as_exact_as_transformers_is(name: str) -> None:
    their_model = theirs(name)
    model, rounded = ours(their_model).bfloat16(), copy.deepcopy(their_model).bfloat16()
    exact = copy.deepcopy(rounded).double()
    assert_within_budget(model(TOKENS), exact(TOKENS).logits, rounded(TOKENS).logits)


def config(**options: Any) -> GPTConfig:
    sizes = {"vocab_size": VOCABULARY, "dim": 24, "layers": 3, "heads": 4, "max_length": 64}
    return GPTConfig(**(sizes | options))


OWN: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary, windows": {
        "positions": "rotary",
        "windows": (5, None),
        "kv_heads": 2,
        "rope_dim": 4,
        "rope_interleaved": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    },
    "alibi": {"positions": "alibi", "norm": "rms_norm", "tied": False},
    "sinusoidal": {"positions": "sinusoidal", "norm_first": False},
    "none": {"positions": "none", "gated": True},
}


def small(**options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(config(initializer_range=0.3, **options), dtype=torch.float64).eval()


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_packed_and_padded_batches_are_rows_alone(name: str) -> None:
    model, lengths = small(**OWN[name]), torch.tensor([9, LENGTH])
    alone = [model(TOKENS[row : row + 1, :n])[0] for row, n in enumerate(lengths)]
    packed = Sequences.packed_from(lengths)
    of = {"cu_seqlens": packed.cu_seqlens, "max_seqlen": packed.max_length}
    torch.testing.assert_close(model(pack(TOKENS, lengths), **of), torch.cat(alone))
    padded = model(TOKENS, lengths=lengths)
    torch.testing.assert_close(pack(padded, lengths), torch.cat(alone))


@pytest.mark.parametrize("page_size", [None, 8])
@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_a_cache_changes_nothing(name: str, page_size: int | None) -> None:
    model = small(**OWN[name])
    caches = model.new_caches(2, LENGTH, page_size=page_size)
    parts = [model(part, caches=caches) for part in TOKENS.split([20, 1, 3, 26], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(TOKENS))


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_own_files(name: str, tmp_path: Path) -> None:
    model = small(**OWN[name])
    model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert again.config.resolved() == model.config.resolved()
    assert torch.equal(again(TOKENS), model(TOKENS))


@torch.no_grad()
def test_without_positions_the_order_is_lost() -> None:
    """What a token of the first layer sees is a sum over the tokens before it."""
    first, second = torch.tensor([[3, 1, 4, 9, 5], [4, 1, 3, 9, 5]])
    for name, options in OWN.items():
        model = small(**(options | {"layers": 1}))
        one, other = model(first[None])[0, -1], model(second[None])[0, -1]
        assert torch.allclose(one, other) == (name == "none"), name


def test_loss_and_gradients() -> None:
    model, labels = small(), TOKENS.roll(-1, 1)
    labels = labels.masked_fill(torch.rand(labels.shape) < 0.3, -100)
    loss = model.loss(TOKENS, labels)
    kept = labels != -100
    likely = model(TOKENS).log_softmax(-1)[kept]
    exact = -likely.gather(1, labels[kept][:, None]).mean()
    torch.testing.assert_close(loss, exact.float(), check_dtype=False, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_fresh_weights() -> None:
    model = GPT(config(dim=64, heads=4, dropout=0.5))
    stds = {name: p.std().item() for name, p in model.named_parameters() if p.dim() == 2}
    assert stds["embedding.weight"] == pytest.approx(0.02, rel=0.1)
    assert stds["blocks.1.attention.in_proj.weight"] == pytest.approx(0.02, rel=0.1)
    for part in ("attention.out_proj", "feed_forward.down"):
        assert stds[f"blocks.1.{part}.weight"] == pytest.approx(0.02 / 6**0.5, rel=0.1)
    assert model.head.weight is model.embedding.weight
    assert not torch.equal(model(TOKENS), model(TOKENS)), "dropout in training"


def test_recorded_attention_maps() -> None:
    model = small(windows=(5, None, 5))
    with record_attention_maps(model, ["blocks.0.attention"], [2]) as maps:
        model(TOKENS)
    weights = maps["blocks.0.attention"][0].weights
    assert weights.shape == (2, 1, LENGTH, LENGTH)
    assert torch.equal(weights[0, 0] > 0, model.blocks[0].attention.band.mask(LENGTH, LENGTH))


def test_compiles_without_a_break() -> None:
    model = small(**OWN["rotary, windows"])
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    labels = TOKENS.roll(-1, 1)
    torch.testing.assert_close(compiled(TOKENS, labels), model.loss(TOKENS, labels))


MISTAKES: dict[str, dict[str, Any]] = {
    "vocab_size: must be at least 1, got 0": {"vocab_size": 0},
    "positions: must be one of learned, .*, got absolute": {"positions": "absolute"},
    r"windows: must hold None or numbers of at least 1, got \(4, 0\)": {"windows": (4, 0)},
    r"windows: must hold None or numbers of at least 1, got \(\)": {"windows": ()},
    "activation: must be one of": {"activation": "tanh"},
    "rope_type: must be one of default, .*, got longrope": {
        "positions": "rotary",
        "rope_scaling": {"rope_type": "longrope"},
    },
    "rope_scaling: must have 'factor' for linear, got none": {
        "positions": "rotary",
        "rope_scaling": {"rope_type": "linear"},
    },
    "rotary: its dim must be even and at most 5, got 5": {"positions": "rotary", "head_dim": 5},
    "kv_heads: must divide heads 4, got 3": {"kv_heads": 3},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_of_a_config(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPT(config(**MISTAKES[message]))


HF_MISTAKES: dict[str, dict[str, Any]] = {
    "model_type: must be one of gpt2, .*, got gemma": {"model_type": "gemma"},
    "add_cross_attention: must be False": {"model_type": "gpt2", "add_cross_attention": True},
    "activation: must be one of .*, got mish": {
        "model_type": "gpt2",
        "activation_function": "mish",
    },
}


@pytest.mark.parametrize("message", HF_MISTAKES)
def test_settings_beyond_this_model(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig.from_hf(OPENAI | HF_MISTAKES[message])


def test_what_no_family_can_express() -> None:
    with pytest.raises(ValueError, match="config: must be what a family of Hugging Face's can exp"):
        config(positions="alibi").to_hf()


def test_wrong_inputs() -> None:
    model = small()
    long: Tensor = torch.zeros(1, 65, dtype=torch.int64)
    with pytest.raises(ValueError, match="input_ids: must not exceed 64 tokens, got 65"):
        model(long)
    with torch.no_grad(), pytest.raises(ValueError, match="must not exceed 64 tokens, got 65"):
        caches = model.new_caches(1, 80)
        model(long[:, :60], caches=caches)
        model(long[:, :5], caches=caches)
    with pytest.raises(ValueError, match=r"input_ids: must have shape \[batch, length\], got"):
        model(TOKENS[0])
    with pytest.raises(ValueError, match=r"input_ids: must have shape \[total\] with cu_seqlens"):
        model(TOKENS, cu_seqlens=torch.tensor([0, 3]))
