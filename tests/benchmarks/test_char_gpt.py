"""The race of two GPTs in training: same start, same batches, another attention."""

from __future__ import annotations

import json

import pytest

from fused_attention.benchmarks import char_gpt
from fused_attention.benchmarks.contenders import OURS
from fused_attention.nn import attention_layers
from fused_attention.training import datasets
from fused_attention.training.recipe import GPT, changed

TEXT = "".join(f"Line {n} of a play, in which {n % 7} people speak.\n" for n in range(200))
SMALL = {"layers": 1, "heads": 2, "dim": 16, "context": 16, "batch_tokens": 64, "held_out": 20}


@pytest.fixture
def play(tmp_path, monkeypatch):
    path = tmp_path / "shakespeare"
    path.mkdir()
    (path / "play.txt").write_text(TEXT)
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))


def test_both_learn_the_same(play, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(char_gpt, "GPT", changed(GPT, SMALL))
    out = tmp_path / "report.json"
    char_gpt.main(["--steps", "25", "--json", str(out)])
    report = json.loads(out.read_text())
    ours, peer = (report["contenders"][name] for name in (OURS, char_gpt.PEER))
    assert ours["validation_loss"] == pytest.approx(peer["validation_loss"], rel=1e-4)
    assert report["speedup"] == pytest.approx(peer["seconds"] / ours["seconds"])
    assert f"{ours['validation_loss']:.4f}" in capsys.readouterr().out


def test_the_peer_runs_on_torchs_attention(play):
    kinds = {
        name: {type(layer).__name__ for layer in attention_layers(trainer.model).values()}
        for name, trainer in char_gpt.trainers(changed(GPT, SMALL)).items()
    }
    assert kinds == {OURS: {"Attention"}, char_gpt.PEER: {"SdpaAttention"}}


def test_missing_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    assert char_gpt.main([]) == 2
    assert "run fused-attention fetch shakespeare" in capsys.readouterr().err
