"""Settings of the recurrent encoder-decoder: the papers' models, and what does not go together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_config import Seq2SeqConfig


def parameters(config: Seq2SeqConfig) -> int:
    """Of the recurrent layers of encoder and decoder."""
    with torch.device("meta"):
        one = Seq2Seq(config)
    layers = (one.encoder.rnn, one.decoder.rnn)
    return sum(parameter.numel() for rnn in layers for parameter in rnn.parameters())


def test_sutskevers_model_has_as_many_recurrent_parameters_as_the_paper_counts() -> None:
    """64 million of 384 are recurrent connections, 32 in each LSTM (section 3.4)."""
    config = Seq2SeqConfig.sutskever()
    assert parameters(config) == pytest.approx(64e6, rel=0.01)
    assert config.bridge_kind == "copy" and config.reverse_source


def test_bahdanaus_model() -> None:
    config = Seq2SeqConfig.bahdanau(dropout=0.1)
    assert (config.memory_dim, config.bridge_kind, config.dropout) == (2000, "tanh", 0.1)
    with torch.device("meta"):
        one = Seq2Seq(config)
    shapes = {name: tuple(weight.shape) for name, weight in one.named_parameters()}
    assert shapes["decoder.attention.query_proj.weight"] == (1000, 1000)
    assert shapes["decoder.attention.key_proj.weight"] == (1000, 2000)
    assert shapes["decoder.rnn.weight_ih_l0"] == (3 * 1000, 620 + 2000)
    assert shapes["decoder.bridge.linear.weight"] == (1000, 1000)
    assert shapes["deep_output.weight"] == (2 * 500, 1000 + 2000 + 620)
    assert shapes["head.weight"] == (30000, 500)


def test_luongs_model() -> None:
    config = Seq2SeqConfig.luong()
    assert (config.window, config.score, config.input_feeding) == ("local-p", "general", True)
    with torch.device("meta"):
        one = Seq2Seq(config)
    assert one.decoder.rnn.weight_ih_l0.shape == (4 * 1000, 2000)
    assert one.decoder.rnn.num_layers == 4 and not one.encoder.rnn.bidirectional


MISTAKES: dict[str, dict[str, Any]] = {
    "cell: must be one of lstm, gru, cho-gru, got 'rnn'": {"cell": "rnn"},
    "attention: must be one of none, bahdanau, .*, local-p, got 'luong'": {"attention": "luong"},
    "init: must be one of torch, uniform, bahdanau, got 'xavier'": {"init": "xavier"},
    "bridge: must be one of copy, tanh, None, got 'mlp'": {"bridge": "mlp"},
    "encoder_layers: must be at least 1, got 0": {"encoder_layers": 0},
    r"dropout: must be in \[0, 1\), got 1": {"dropout": 1.0},
    r"label_smoothing: must be in \[0, 1\), got -0.1": {"label_smoothing": -0.1},
    "width: must be finite and at least 0, got nan": {"width": float("nan")},
    "dim: must be even for two directions, or encoder_dim be given, got 7": {"dim": 7},
    "decoder_layers: must be encoder_layers 2 to copy states, got 1": {
        "encoder_layers": 2,
        "attention": "none",
    },
    "dim: must be the encoder's 40 features to copy states, got 256": {
        "encoder_dim": 20,
        "attention": "local-p",
    },
    r"start_token: must be a token of the target, in \[0, 7\), got 7": {
        "vocab_size": 9,
        "target_vocab_size": 7,
        "start_token": 7,
    },
    "pad_token: must be a token of the target, .*, got -1": {"pad_token": -1},
    "input_feeding: needs one of Luong's attentions, .*, got bahdanau": {"input_feeding": True},
    "normed: needs attention bahdanau, got local-m": {"normed": True, "attention": "local-m"},
    "maxout: must be 0, or above with attention bahdanau, got 3 with none": {
        "maxout": 3,
        "attention": "none",
    },
    "maxout: must be 0, or above with attention bahdanau, got -1": {"maxout": -1},
    "local_score: must be one of dot, general, got 'concat'": {
        "attention": "local-p",
        "local_score": "concat",
    },
    "local_score: must be one of dot, general, concat, got 'mlp'": {
        "attention": "local-m",
        "local_score": "mlp",
    },
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Seq2SeqConfig(**MISTAKES[message])


def test_transformers_has_no_such_model() -> None:
    with pytest.raises(ValueError, match="transformers has no recurrent encoder-decoders"):
        Seq2SeqConfig().to_hf()
    with pytest.raises(ValueError, match="model_type: must be fused_attention, got 'marian'"):
        Seq2SeqConfig.from_hf({"model_type": "marian"})
