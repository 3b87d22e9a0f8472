"""Experiments with recurrent encoder-decoders: what they report, and how it is judged and drawn."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch

from fused_attention.benchmarks import seq2seq, seq2seq_runs
from fused_attention.training import datasets
from fused_attention.training.recipe import changed, default_run

SMALL = {"dim": 16, "embedding_dim": 8, "batch_tokens": 300, "steps": 3, "held_out": 30}


@pytest.fixture
def dictionary(tmp_path, monkeypatch):
    """A small CMUdict, and recipes of some steps."""
    folder = tmp_path / "cmudict"
    folder.mkdir()
    words = ("".join("aeiou"[(n >> k) % 5] for k in range(3 + n % 15)) for n in range(400))
    lines = (f"{word.upper()}  {' '.join(word.upper())}" for word in dict.fromkeys(words))
    (folder / "dict.txt").write_text("\n".join(lines))
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    monkeypatch.setattr(seq2seq_runs, "default_run", lambda *a: changed(default_run(*a), SMALL))
    monkeypatch.setattr(seq2seq_runs, "changed", lambda r, c: changed(r, {**c, **SMALL}))
    monkeypatch.setattr(seq2seq_runs, "load_g2p", lambda path: path)
    monkeypatch.setattr(
        seq2seq_runs, "pronounce", lambda model, words, **_: [[w.upper() + "0"] for w in words]
    )
    (tmp_path / "g2p-en").mkdir()


@pytest.mark.slow
def test_reports_are_judged_and_drawn(dictionary, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from fused_attention.benchmarks import seq2seq_pictures

    results, pictures = tmp_path / "results", tmp_path / "pictures"
    threads = torch.get_num_threads()
    assert seq2seq.main([str(results)]) == 1, "three steps meet no bar"
    assert torch.get_num_threads() == threads
    told = capsys.readouterr()
    assert "exact match must be 1, got 0.000" in told.err
    assert "local-p, seed 2: 3 steps, validation loss" in told.err
    assert re.search(r"^g2p-en, exact +0\.000", told.out, re.MULTILINE)
    places = json.loads((results / "seq2seq_places.json").read_text())
    assert [run["seed"] for run in places["attentions"]["local-p"]] == [0, 1, 2]
    assert places["attentions"]["local-p"][0]["alignment"]["places"]
    assert seq2seq_pictures.main([str(results), str(pictures)]) == 0
    drawn = {path.name: path.read_bytes()[:4] for path in pictures.iterdir()}
    assert drawn == dict.fromkeys(seq2seq_pictures.PICTURES, b"\x89PNG")
    (results / "seq2seq_places.json").unlink()
    with pytest.raises(SystemExit):
        seq2seq_pictures.main([str(results), str(pictures)])
    assert "results: must hold seq2seq_places.json" in capsys.readouterr().err


def test_missing_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    assert seq2seq.main([str(tmp_path / "out"), "places"]) == 2
    assert "run fused-attention fetch cmudict" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rising_places():
    up, down = torch.tensor([0.1, 1.0, 2.5, 3.0]), torch.tensor([3.0, 2.0, 1.0])
    assert seq2seq_runs.rises([up]) == pytest.approx({"rank_correlation": 1.0, "rising": 1.0})
    assert seq2seq_runs.rises([up, down]) == pytest.approx({"rank_correlation": 0, "rising": 0.6})


def test_words_by_length():
    sources, references = ["ab", "abcde", "abcdf"], [["A"], ["B", "C"], ["D"]]
    rows = seq2seq_runs.by_length(["A", "C", "X"], sources, references)
    assert [(row["letters"], row["words"], row["exact_match"]) for row in rows] == [
        ([2, 4], 1, 1.0),
        ([5, 6], 2, 0.5),
    ]


LOCAL = [{"seed": n, "exact_match": 0.5, "rank_correlation": 0.99} for n in range(3)]
GOOD = {
    "dates": {"exact_match": 1.0, "seconds": 20.0},
    "lengths": {
        "models": {
            "none": [{"by_length": [{"bleu": 60.0}, {"bleu": 10.0}]}],
            "bahdanau": [{"by_length": [{"bleu": 50.0}, {"bleu": 30.0}]}],
        }
    },
    "places": {"attentions": {"local-p": LOCAL, "luong-general": [{"exact_match": 0.52}] * 3}},
}


def test_bars():
    assert [seq2seq.misses(name, report) for name, report in GOOD.items()] == [[], [], []]
    bad = copy.deepcopy(GOOD)
    bad["dates"] |= {"exact_match": 0.998, "seconds": 31.0}
    bad["lengths"]["models"]["none"][0]["by_length"][1]["bleu"] = 30.0
    bad["places"]["attentions"]["local-p"][1]["rank_correlation"] = 0.9
    bad["places"]["attentions"]["luong-general"] = [{"exact_match": 0.54}] * 3
    found = [rule for name, report in bad.items() for rule in seq2seq.misses(name, report)]
    assert [rule.partition(" must")[0].split(" ")[0] for rule in found] == [
        *("exact", "training", "long", "local-p", "places"),
    ]
