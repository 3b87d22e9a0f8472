"""Texts and sentence pairs from files."""

from __future__ import annotations

import pytest

from fused_attention.training import corpora, datasets
from fused_attention.training.corpora import DataError
from fused_attention.training.datasets import MissingDataError

PAIRS = [("go.", "va !"), ("go.", "bouge !"), ("run!", "cours !"), ("hi.", "salut !")]


def test_a_text_of_several_files(tmp_path):
    (tmp_path / "b.txt").write_bytes("caf\u00e9\r\n".encode("latin-1"))
    (tmp_path / "a.txt").write_bytes("\u00e9t\u00e9".encode())
    assert corpora.read_text(str(tmp_path)) == "\u00e9t\u00e9\ncaf\u00e9\n"
    assert corpora.read_text(str(tmp_path / "a.txt")) == "\u00e9t\u00e9"


def test_pairs_of_a_file(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("Go.\tVa !\tCC-BY by somebody\nHi.\tSalut !\n")
    assert corpora.read_pairs(str(path)) == [("Go.", "Va !"), ("Hi.", "Salut !")]
    path.write_text("Go.\tVa !\nHi.\n")
    with pytest.raises(DataError, match="must have a tab in each line, line 2 has none"):
        corpora.read_pairs(str(path))


def test_datasets_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    for name, file, read in (
        ("shakespeare", "a_gut.txt", corpora.read_text),
        ("tatoeba", "fra.txt", corpora.read_pairs),
        ("cmudict", "dict.txt", corpora.read_pairs),
    ):
        with pytest.raises(MissingDataError, match=f"run fused-attention fetch {name}"):
            read(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("a\tb")
    assert corpora.read_text("shakespeare") == "a\tb"
    assert corpora.read_pairs("tatoeba") == [("a", "b")]


def test_pronunciations(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    (tmp_path / "cmudict").mkdir()
    lines = ("A'S  EY1 Z", "TOMATO  T AH0 M EY1 T OW2", "TOMATO(1)  T AH0 M AA1 T OW2")
    lines += ("READ  R EH1 D", "READ(1)  R EH0 D", "READ(2)  R IY1 D")
    (tmp_path / "cmudict" / "dict.txt").write_text("\n".join(lines))
    assert corpora.read_pairs("cmudict") == [
        ("tomato", "T AH M EY T OW"),
        ("tomato", "T AH M AA T OW"),
        ("read", "R EH D"),
        ("read", "R IY D"),
    ]


def test_dates_need_no_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path / "none"))
    assert len(corpora.read_pairs("dates")) > 20_000


def test_data_that_do_not_exist(tmp_path):
    with pytest.raises(DataError, match="data: must be shakespeare, a text file or a folder"):
        corpora.read_text(str(tmp_path / "no"))
    with pytest.raises(DataError, match="got 'minilm', which holds something else"):
        corpora.read_text("minilm")
    with pytest.raises(DataError, match=r"must be a folder with \*.txt files"):
        corpora.read_text(str(tmp_path))
    with pytest.raises(DataError, match=r"data: cannot read .* \(Is a directory\)"):
        corpora.read_pairs(str(tmp_path))


def test_held_out_sentences_are_unseen():
    held = corpora.hold_out(PAIRS, 2, seed=0)
    assert len(held.sources) == 2
    assert not {source for source, _ in held.training} & set(held.sources)
    seen = [(s, t) for s, ts in zip(held.sources, held.references, strict=True) for t in ts]
    assert sorted(seen + held.training) == sorted(PAIRS)
    assert held == corpora.hold_out(PAIRS, 2, seed=0)
    with pytest.raises(DataError, match="data: must hold more than 3 sentences, got 3"):
        corpora.hold_out(PAIRS, 3, seed=0)


def test_short_pairs_are_simple():
    pairs = [("I See", "Je vois\u202f!"), ("One two three four", "Un")]
    assert corpora.short_pairs(pairs, 3, 3) == [("i see", "je vois !")]
