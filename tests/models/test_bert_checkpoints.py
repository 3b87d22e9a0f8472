"""BERT's and ModernBERT's checkpoints: from transformers, to it, and names of all ages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_transformers as tiny
import torch
import transformers
from torch import Tensor

from fused_attention.models.bert import BERT
from fused_attention.models.bert_config import BERTConfig
from fused_attention.models.weights import Checkpoint, read_settings, write_checkpoint

CLASSES = (
    "BertModel",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "ModernBertModel",
    "ModernBertForMaskedLM",
)
SMALL = {"vocab_size": 64, "dim": 32, "layers": 2, "heads": 4, "hidden_dim": 40, "max_length": 64}


def theirs(class_name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    family = "modernbert" if class_name.startswith("Modern") else "bert"
    model = getattr(transformers, class_name)(tiny.config(family, **changes))
    return tiny.spread(model).eval()


def assert_same_weights(one: BERT, other: BERT) -> None:
    assert one.config == other.config
    weights = other.weights()
    for name, weight in one.weights().items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("class_name", CLASSES)
def test_round_trip_through_transformers(class_name: str, tied: bool, tmp_path: Path) -> None:
    model = theirs(class_name, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "theirs")
    one = BERT.from_pretrained(tmp_path / "theirs")
    one.save_pretrained(tmp_path / "ours", max_shard_bytes=4000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    back, report = getattr(transformers, class_name).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    unused = set() if tied else {"cls.predictions.bias"}  # it is there, but never added
    assert {name for names in report.values() for name in names} <= unused, report
    state = back.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(state[name], weight) or name in unused, name
    assert_same_weights(BERT.from_pretrained(tmp_path / "ours"), one)
    kept = json.loads((tmp_path / "theirs" / "config.json").read_text())
    written = read_settings(tmp_path / "ours")
    lost = {k for k in written if k in kept and kept[k] != written[k]}
    assert lost <= {"dtype"}, lost


def saved(folder: Path, model: Any, state: dict[str, Tensor], **settings: Any) -> Path:
    settings = {**model.config.to_dict(), "architectures": [type(model).__name__], **settings}
    write_checkpoint(folder, settings, {name: t.clone() for name, t in state.items()})
    return folder


def test_names_of_tensorflow_and_sentence_transformers(tmp_path: Path) -> None:
    model = theirs("BertModel")
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in model.state_dict().items()
    }
    state["embeddings.position_ids"] = torch.arange(64)[None]
    assert any(name.endswith("gamma") for name in state)
    plain = BERT.from_pretrained(saved(tmp_path / "plain", model, state))
    prefixed = {f"bert.{name}": tensor for name, tensor in state.items()}
    assert_same_weights(BERT.from_pretrained(saved(tmp_path / "bert", model, prefixed)), plain)
    assert torch.equal(plain.embedding_norm.weight, model.embeddings.LayerNorm.weight)


def test_heads_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    model = theirs("BertForPreTraining")
    # The widest used checkpoints hold both heads under the name of a class with one.
    folder = saved(tmp_path, model, _own(model))
    settings = read_settings(folder)
    settings["architectures"] = ["BertForMaskedLM"]
    (folder / "config.json").write_text(json.dumps(settings))
    one = BERT.from_pretrained(folder)
    assert one.pooler is not None and one.mlm_head is not None and one.nsp_head is not None
    plain = BERT.from_pretrained(folder, mlm_head=False, nsp_head=False, pooler=False)
    assert plain.pooler is plain.mlm_head is plain.nsp_head is None
    assert torch.equal(plain.tokens.weight, one.tokens.weight)
    deep = {name: t for name, t in Checkpoint(folder).items() if "layer.1" not in name}
    write_checkpoint(folder, settings, deep)
    with pytest.raises(ValueError, match=r"but it lacks bert\.encoder\.layer\.1\."):
        BERT.from_pretrained(folder)
    assert len(BERT.from_pretrained(folder, layers=1).blocks) == 1


def _own(model: Any) -> dict[str, Tensor]:
    return {n: t for n, t in model.state_dict().items() if "decoder" not in n}


@pytest.mark.parametrize("class_name", ["BertFor", "ModernBertFor"])
def test_other_heads_are_loud(class_name: str, tmp_path: Path) -> None:
    model = theirs(f"{class_name}SequenceClassification")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has unknown classifier\.bias, classifier\.weight"):
        BERT.from_pretrained(tmp_path)
    one = BERT.from_pretrained(tmp_path, ignore=["classifier", "head"])
    with torch.no_grad():
        expected = model(tiny.tokens(), output_hidden_states=True).hidden_states[-1]
        actual = one(tiny.tokens()).hidden
    if class_name == "BertFor":
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_tied_weight_must_be_the_copy_it_is_said_to_be(tmp_path: Path) -> None:
    model = theirs("BertForMaskedLM")
    state = _own(model) | {"cls.predictions.decoder.weight": torch.zeros(64, 32)}
    with pytest.raises(ValueError, match=r"instead of a copy in cls\.predictions\.decoder\.weight"):
        BERT.from_pretrained(saved(tmp_path, model, state))


OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "rotary": {"positions": "rotary"},
    "local": {"local_layers": (1,), "window": 3},
    "heads": {"nsp_head": False},
    "dropout": {"embedding_dropout": 0.3},
    "segments": {"token_types": 0},
}


@pytest.mark.parametrize("name", OWN_SETTINGS)
def test_what_transformers_lacks_is_saved_under_our_names(name: str, tmp_path: Path) -> None:
    config = BERTConfig(**SMALL, **OWN_SETTINGS[name])
    with pytest.raises(ValueError):
        config.to_hf()
    one = BERT(config).eval()
    one.save_pretrained(tmp_path)
    assert read_settings(tmp_path)["model_type"] == "fused_attention"
    loaded = BERT.from_pretrained(tmp_path)
    assert_same_weights(loaded, one)
    ids = tiny.tokens()
    assert torch.equal(loaded(ids).hidden, one(ids).hidden)


def test_settings_of_older_modernbert_checkpoints() -> None:
    old = {
        "model_type": "modernbert",
        "num_hidden_layers": 7,
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 5e4,
        "local_rope_theta": 2e3,
    }
    config = BERTConfig.from_hf(old)
    assert config.local_layers == (1, 3, 5) and config.window == 64
    assert (config.rotary_base, config.local_rotary_base) == (5e4, 2e3)
    defaults = transformers.ModernBertConfig().to_dict()
    assert BERTConfig.from_hf(defaults) == BERTConfig.modern()
    base = transformers.BertConfig(architectures=["BertForPreTraining"]).to_dict()
    assert BERTConfig.from_hf(base) == BERTConfig()


WRONG_SETTINGS = {
    "model_type: must be one of bert, modernbert, got 'gpt2'": {"model_type": "gpt2"},
    "is_decoder: must be False for this model, got True": {"is_decoder": True},
    "position_embedding_type: must be 'absolute'": {"position_embedding_type": "relative_key"},
    "hidden_act: must be one of gelu, .* got 'mish'": {"hidden_act": "mish"},
    "rope_type: must be 'default' for this model, got 'yarn'": {
        "model_type": "modernbert",
        "rope_parameters": {"full_attention": {"rope_type": "yarn"}},
    },
}


@pytest.mark.parametrize("message", WRONG_SETTINGS)
def test_settings_beyond_the_model_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BERTConfig.from_hf({"model_type": "bert", **WRONG_SETTINGS[message]})


WRONG_CONFIGS = {
    "pooler: must be there for nsp_head": {"pooler": False},
    "positions: must be learned or rotary, got 'sinusoidal'": {"positions": "sinusoidal"},
    "window: must be at least 0, got -1": {"window": -1},
    r"local_layers: must be in \[0, 2\), got \[2\]": {"local_layers": (1, 2)},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_wrong_configurations(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BERTConfig(**SMALL), **WRONG_CONFIGS[message])
