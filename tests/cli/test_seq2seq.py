"""train seq2seq, translate and align on tiny recurrent encoder-decoders."""

from __future__ import annotations

import json

import pytest
import torch

from fused_attention.cli import align
from fused_attention.training import datasets
from fused_attention.training.aligning import TextAlignment

SMALL = "--dim 16 --embedding-dim 8 --batch-tokens 300 --steps 4 --log-every 1 --held-out 10"
PAIRS = "".join(f"i see {n} of you.\tje vois {n} de toi.\n" for n in range(80))
ATTENTIONS = (
    "none",
    "bahdanau",
    "luong-dot",
    "luong-general",
    "luong-concat",
    "local-m",
    "local-p",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with one trained model of each attention."""
    from fused_attention.cli import main

    folder = tmp_path_factory.mktemp("runs")
    (folder / "pairs.tsv").write_text(PAIRS)
    for attention in ATTENTIONS:
        place = ["--out", str(folder / attention), "--data", str(folder / "pairs.tsv")]
        kind = ["--attention", attention, "--width", "2", "--vocab-size", "300"]
        report = ["--json", str(folder / f"{attention}.json")]
        assert main(["train", "seq2seq", *place, *kind, *SMALL.split(), *report]) == 0
    return folder


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_train_reports_and_resumes(runs, command, attention):
    report = json.loads((runs / f"{attention}.json").read_text())
    assert [entry["step"] for entry in report["log"]] == [1, 2, 3, 4]
    assert report["best_step"] == 4 and report["log"][-1]["validation_loss"] > 0
    assert 0 <= report["exact_match"] <= 1 and 0 <= report["bleu"] <= 100
    outcome = command("train", "--resume", runs / attention)
    assert outcome.code == 0
    assert f"{report['parameters']:,} parameters, 4 steps" in outcome.out
    assert f"BLEU {report['bleu']:.1f}, exact match" in outcome.out
    assert "on 10 sources that it has never seen" in outcome.out


def test_dates_are_trained_on_without_a_fetch(command, monkeypatch, tmp_path):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path / "none"))
    folder, report = tmp_path / "run", tmp_path / "run.json"
    stopping = ("--evaluate-every", 1, "--patience", 1, "--learning-rate", 0.3, "--warmup", 0)
    small = [word for word in SMALL.split() if word not in ("--steps", "4")]
    outcome = command(
        "train", "seq2seq", "--out", folder, *small, "--steps", 60, *stopping, "--json", report
    )
    assert outcome.code == 0, outcome.err
    told = json.loads(report.read_text())
    losses = [entry["validation_loss"] for entry in told["log"]]
    assert told["steps"] == len(losses) < 60, "a rate that is far too high makes it worse"
    assert told["best_step"] == losses.index(min(losses)) + 1 == told["steps"] - 1
    upper = command("translate", folder, "Saturday 9 MAY 2018", "--json")
    lower = command("translate", folder, "saturday 9 may 2018", "--json")
    assert json.loads(upper.out)["translations"] == json.loads(lower.out)["translations"]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_translate(runs, command, attention):
    outcome = command("translate", runs / attention, "I see 5 of you.", "--json")
    assert outcome.code == 0, outcome.err
    assert isinstance(json.loads(outcome.out)["translations"][0], str)


@pytest.mark.parametrize("attention", ATTENTIONS[1:])
def test_align(runs, command, tmp_path, attention):
    picture, numbers = tmp_path / "a.png", tmp_path / "a.json"
    outcome = command(
        *("align", runs / attention, "I see 7 of you.", "--target", "Je vois 7 de toi."),
        *("--out", picture, "--json", numbers),
    )
    assert outcome.code == 0, outcome.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads(numbers.read_text())
    assert "".join(told["source"]) == "i see 7 of you.</s>"
    assert "".join(told["target"]) == "je vois 7 de toi.</s>"
    weights = torch.tensor(told["weights"])
    assert weights.shape == (len(told["target"]), len(told["source"]))
    sums = weights.sum(-1)
    if attention == "local-p":
        assert (sums > 0).all() and (sums < 1).all()
        assert all(0 <= place <= len(told["source"]) for place in told["places"])
    elif attention == "local-m":
        seen = [first <= last for first, last in told["windows"]]
        assert torch.allclose(sums, torch.tensor(seen).float(), atol=1e-5)
        assert told["places"] == list(range(len(told["target"])))
    else:
        assert torch.allclose(sums, torch.ones(()), atol=1e-5)
        assert told["places"] is None is told["windows"]
    shown = command("align", runs / attention, "i see 7 of you.")
    assert ("p = " in shown.out) == attention.startswith("local")


def test_weights_in_letters(capsys):
    from fused_attention.cli.output import Output

    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.55, 0.4]])
    align.show(Output(None), TextAlignment(["a", " ", "b"], ["x", "yy"], weights, [0.2, 1.5], None))
    assert capsys.readouterr().out.splitlines() == [
        " x |@  | 'a'  p = 0.2",
        "yy | +=| ' '  p = 1.5",
    ]


def test_wrong_arguments(runs, command, monkeypatch, tmp_path):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path / "none"))
    new = ("seq2seq", "--out", tmp_path / "x")
    torn = tmp_path / "torn"
    torn.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (torn / name).write_bytes((runs / "bahdanau" / name).read_bytes())
    (torn / "target_tokenizer.json").write_text("{}")
    wrong = {
        ("train", *new, "--data", "cmudict"): "run fused-attention fetch cmudict",
        ("train", *new, "--attention", "sharp"): "--attention: invalid choice: 'sharp'",
        ("train", *new, "--heads", "4"): "argument --heads: means nothing to the family seq2seq",
        ("train", *new, "--directions", "3"): "directions: must be 1 or 2, got 3",
        ("train", *new, "--width", "-1"): "width: must be finite and at least 0",
        ("train", *new, "--patience", "-1"): "patience: must be at least 0, got -1",
        ("train", "gpt", *new[1:], "--cell", "gru"): "--cell: means nothing to the family gpt",
        ("align", runs / "none", "x"): "argument MODEL: model: must have an attention",
        ("align", runs / "none"): "the following arguments are required: SENTENCE",
        ("align", runs / "bahdanau", "x", "--beams", "0"): "--beams: must be at least 1, got 0",
        ("align", runs / "bahdanau", "x", "--out", tmp_path / "x.doc"): "argument --out: cannot",
        ("align", torn, "x"): "tokenizer: cannot read",
        ("translate", torn, "x"): "tokenizer: cannot read",
        ("generate", runs / "none"): "must be a GPT, ",
    }
    for arguments, message in wrong.items():
        outcome = command(*arguments)
        assert outcome.code == 2, (arguments, outcome)
        assert message in outcome.err, (arguments, outcome.err)
        assert outcome.err.count("\n") == 1
    assert not (tmp_path / "x").exists()
