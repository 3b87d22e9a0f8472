"""GGUF files give the model that transformers makes of them; unknown ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fused_attention.models.generation import generate
from fused_attention.models.gguf import GGUFFile, config_from_gguf, gpt_from_gguf
from fused_attention.models.gpt import GPT
from fused_attention.models.gpt_config import GPTConfig
from fused_attention.models.tables.gguf import llama
from fused_attention.models.weights import to_checkpoint

gguf = pytest.importorskip("gguf")

CONFIG = GPTConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "eos_token_id": 3,
    }
)
TOKENS = torch.arange(40)[None]


def model(**changes: Any) -> GPT:
    torch.manual_seed(0)
    made = GPT(GPTConfig(**(vars(CONFIG) | {"initializer_range": 0.3} | changes))).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    return made


def write(path: Path, made: GPT, quantised: bool = False, **changes: Any) -> None:
    """A file as llama.cpp writes it."""
    config = made.config
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(config.layers)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(config.eos_tokens[0])
    if "scaling" in changes:
        writer.add_rope_scaling_type(gguf.RopeScalingType(changes["scaling"]))
        writer.add_rope_scaling_factor(4.0)
    tensors = to_checkpoint(llama(config), made.weights()) | changes.get("tensors", {})
    for name, tensor in tensors.items():
        numbers = tensor.numpy()
        if quantised and tensor.dim() == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_there_and_back(tied: bool, tmp_path: Path) -> None:
    made = model(tied=tied)
    write(tmp_path / "m.gguf", made)
    again = gpt_from_gguf(tmp_path / "m.gguf")
    assert again.config.tied == tied and again.config.eos_tokens == (3,)
    assert torch.equal(again(TOKENS), made(TOKENS))
    assert (
        not again.training
        and gpt_from_gguf(tmp_path / "m.gguf", dtype=torch.bfloat16)(TOKENS).dtype == torch.bfloat16
    )


@torch.no_grad()
def test_quantised_weights_are_unpacked(tmp_path: Path) -> None:
    made = model()
    write(tmp_path / "m.gguf", made, quantised=True)
    again = gpt_from_gguf(tmp_path / "m.gguf")
    for name, tensor in made.weights().items():
        step, rounding = 1 / 127, 2.0**-11  # of the bytes, and of their scale in fp16
        allowed = tensor.abs().max() * (step / 2 + rounding)
        assert (again.weights()[name] - tensor).abs().max() <= allowed, name


def test_pairs_of_a_head_move() -> None:
    """llama.cpp's elements 0 and 1 of a head are a pair, transformers' 0 and head_dim / 2."""
    made = model()
    weights = to_checkpoint(llama(made.config), made.weights())
    theirs = made.hf_state_dict()
    for name, key in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
        ggml = weights[f"blk.1.{name}.weight"].unflatten(0, (-1, 4, 2))
        halves = theirs[f"model.layers.1.self_attn.{key}.weight"].unflatten(0, (-1, 2, 4))
        assert torch.equal(ggml, halves.transpose(1, 2))
    value = theirs["model.layers.1.self_attn.v_proj.weight"]
    assert torch.equal(weights["blk.1.attn_v.weight"], value)


def test_linear_scaling(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", model(), scaling="linear")
    config = config_from_gguf(GGUFFile(tmp_path / "m.gguf"))
    assert config.rope_scaling == {"rope_type": "linear", "factor": 4.0}


MISTAKES: dict[str, dict[str, Any]] = {
    "architecture: must be llama, got gemma": {"architecture": "gemma"},
    "llama.rope.scaling.type: must be none or linear, got yarn": {"scaling": "yarn"},
    "checkpoint: must have exactly the weights of the model, but it has unknown rope_freqs": {
        "tensors": {"rope_freqs.weight": torch.ones(4)}
    },
}


@pytest.mark.parametrize("message", MISTAKES)
def test_what_is_refused(message: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", model(), **MISTAKES[message])
    with pytest.raises(ValueError, match=message):
        gpt_from_gguf(tmp_path / "m.gguf")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path: must be a GGUF file, got"):
        gpt_from_gguf(tmp_path / "none.gguf")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    datasets = pytest.importorskip("fused_attention.training.datasets")
    if not datasets.is_fetched("smollm2"):
        pytest.skip("needs the weights: fused-attention fetch smollm2")
    return next(datasets.folder_of("smollm2").glob("*.gguf"))


@pytest.mark.slow
def test_smollm2(smollm2: Path) -> None:
    """Real weights: the logits and 64 greedy tokens of transformers' own reading of the file."""
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    source = {"gguf_file": smollm2.name, "dtype": torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2.parent, **source).eval()
    made = gpt_from_gguf(smollm2)
    prompt = torch.tensor([[504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 2240, 282, 260]])
    with torch.no_grad():
        exact = theirs(prompt).logits
        assert (made(prompt) - exact).abs().max() <= 1e-3 * exact.abs().max()
    wanted = theirs.generate(
        prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False, eos_token_id=None
    )
    assert (
        generate(made, prompt, max_new_tokens=64, stop=()) == wanted[:, prompt.shape[1] :].tolist()
    )
