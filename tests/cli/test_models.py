"""fetch, train, generate, embed, translate and attention-map on tiny models."""

from __future__ import annotations

import json

import numpy
import pytest
import torch

from fused_attention.training import datasets, fetch

SMALL = "--layers 2 --heads 2 --dim 16 --context 24 --batch-tokens 96 --vocab-size 300 --steps 4"
TEXT = "".join(f"Line {n} of a play, in which {n % 7} people speak.\n" for n in range(300))
PAIRS = "".join(f"i see {n} of you.\tje vois {n} de toi.\n" for n in range(120))


def small(*more):
    return [*SMALL.split(), "--log-every", "1", *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with one trained model of each family."""
    from fused_attention.cli import main

    folder = tmp_path_factory.mktemp("runs")
    (folder / "play.txt").write_text(TEXT)
    (folder / "pairs.tsv").write_text(PAIRS)
    for family, data in (("gpt", "play.txt"), ("bert", "play.txt"), ("transformer", "pairs.tsv")):
        place = ["--out", str(folder / family), "--data", str(folder / data)]
        report = str(folder / f"{family}.json")
        assert main(["train", family, *place, *small("--held-out", "10"), "--json", report]) == 0
    return folder


@pytest.mark.parametrize("family", ["gpt", "bert", "transformer"])
def test_train_reports_and_resumes(runs, command, family):
    report = json.loads((runs / f"{family}.json").read_text())
    assert [entry["step"] for entry in report["log"]] == [1, 2, 3, 4]
    assert report["log"][-1]["validation_loss"] > 0
    assert ("bleu" in report) == (family == "transformer")
    outcome = command("train", "--resume", runs / family)
    assert outcome.code == 0
    assert f"{report['parameters']:,} parameters, 4 steps" in outcome.out
    assert f"the model is in {runs / family}" in outcome.out or "model in" in outcome.out


def test_train_bert_on_pairs_of_texts(runs, command, tmp_path):
    place = ["--out", tmp_path / "bert", "--data", runs / "play.txt"]
    outcome = command("train", "bert", *place, *small("--next-sentence", "--held-out", "30"))
    assert outcome.code == 0, outcome.err
    assert "right about what follows what in " in outcome.out


def test_train_refuses(runs, command, monkeypatch, tmp_path):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path / "none"))
    torn = tmp_path / "torn"
    torn.mkdir()
    for name in ("run.json", "tokenizer.json"):
        (torn / name).write_bytes((runs / "gpt" / name).read_bytes())
    (torn / "step-00000004.safetensors").write_bytes(b"1234")
    file = runs / "play.txt"
    wrong = {
        ("gpt", "--out", tmp_path / "x"): "run fused-attention fetch shakespeare",
        ("transformer", "--out", tmp_path / "x"): "run fused-attention fetch tatoeba",
        ("gpt", "--out", runs / "gpt", "--data", file): "holds a run already; --resume",
        ("gpt", "--out", tmp_path / "x", "--data", "no.txt"): "'no.txt', which does not exist",
        ("transformer", "--out", tmp_path / "x", "--data", file): "must have a tab in each line",
        ("--out", tmp_path / "x"): "choose a family, one of gpt, bert, transformer, seq2seq",
        ("gpt",): "one of the arguments --out --resume is required",
        ("--resume", tmp_path): "holds no run.json",
        ("--resume", torn): "checkpoint: cannot read",
        ("--resume", runs / "gpt", "--steps", "9"): "the run keeps its settings, got --steps too",
        ("gpt", "--resume", runs / "gpt"): "got the family too",
        ("gpt", "--out", tmp_path / "x", "--heads", "3"): "dim: must be divisible by heads 3",
        ("gpt", "--out", tmp_path / "x", "--steps", "0"): "steps: must be at least 1, got 0",
        ("gpt", "--out", tmp_path / "x", "--device", "tpux"): "--device: must be cpu or cuda",
    }
    for arguments, message in wrong.items():
        outcome = command("train", *arguments)
        assert outcome.code == 2, arguments
        assert message in outcome.err, arguments
        assert outcome.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_generate(runs, command, tmp_path):
    arguments = ("generate", runs / "gpt", "--prompt", "Line ", "--tokens", 40)
    told = tmp_path / "told.json"
    first = command(*arguments, "--json", told)
    assert first.code == 0
    made = json.loads(told.read_text())
    assert len(made["tokens"]) == 40  # more than the model's context
    assert made["text"].startswith("Line ")
    assert first.out.rstrip("\n") == made["text"].rstrip("\n")
    assert command(*arguments).out == first.out
    assert command(*arguments, "--seed", 5).out != first.out
    greedy = [command(*arguments, "--temperature", 0, "--seed", s).out for s in (1, 2)]
    assert greedy[0] == greedy[1]


def test_embed(runs, command, tmp_path):
    file = tmp_path / "sentences.txt"
    file.write_text("Line 5 of a play.\n\nLine 5 of a play.\n")
    out = tmp_path / "vectors.npy"
    outcome = command("embed", runs / "bert", "people speak", "--file", file, "--out", out)
    assert outcome.code == 0
    vectors = torch.from_numpy(numpy.load(out))
    assert vectors.shape == (3, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(vectors[1], vectors[2])
    assert f"{vectors[0] @ vectors[1]:.3f}" in outcome.out
    alone = json.loads(command("embed", runs / "bert", "people speak", "--json").out)
    torch.testing.assert_close(torch.tensor(alone["vectors"][0]), vectors[0])


def test_translate(runs, command):
    outcome = command("translate", runs / "transformer", "I see 5 of you.", "--json")
    assert outcome.code == 0
    told = json.loads(outcome.out)
    assert told["sentences"] == ["I see 5 of you."]
    assert isinstance(told["translations"][0], str)
    lower = command("translate", runs / "transformer", "i see 5 of you.", "--json")
    assert json.loads(lower.out)["translations"] == told["translations"]


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_attention_map(runs, command, tmp_path, family):
    picture, arrays = tmp_path / "map.png", tmp_path / "map.npz"
    chosen = ("--layers", "1", "--heads", "0,1")
    outcome = command(
        *("attention-map", runs / family, "people speak", *chosen),
        *("--out", picture, "--npz", arrays),
    )
    assert outcome.code == 0, outcome.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = numpy.load(arrays)
    weights, tokens = content["layer_0"], content["keys_0"]
    assert weights.shape == (1, 2, len(tokens), len(tokens))
    assert (content["queries_0"] == tokens).all()
    assert list(content["names"]) == ["blocks.1.attention"]
    assert numpy.allclose(weights.sum(-1), 1, atol=1e-5)
    above = numpy.triu(numpy.ones(weights.shape[-2:]), 1).astype(bool)
    assert (weights[..., above] == 0).all() == (family == "gpt")


def test_attention_map_summary(runs, command, tmp_path):
    text = ("attention-map", runs / "gpt", "people speak of people")
    outcome = command(*text, "--summary", "--heads", "1,0")
    assert outcome.code == 0, outcome.err
    rows = [line.split()[:2] for line in outcome.out.splitlines() if "blocks" in line]
    assert rows == [[f"blocks.{layer}.attention", head] for layer in range(2) for head in "10"]
    told = json.loads(command(*text, "--summary", "--heads", "1,0", "--json").out)["heads"]
    maps = json.loads(command(*text, "--heads", "1,0", "--json").out)["layers"]
    for head in told:
        layer = maps[head["layer"]]
        weights = torch.tensor(layer["weights"])[1 - head["head"]]
        entropy = torch.special.entr(weights).sum(-1).mean().item()
        assert head["entropy"] == pytest.approx(entropy, abs=1e-5)
        assert head["first"] == pytest.approx(weights[:, 0].mean().item(), abs=1e-5)
        place = torch.arange(len(weights))
        own = (weights.argmax(-1) == place).float().mean().item()
        assert head["itself"] == pytest.approx(own)
        mean = weights.sum(0) / (len(weights) - place)
        assert head["most_read"] == layer["keys"][mean.argmax()]
        assert head["most_weight"] == pytest.approx(mean.max().item(), abs=1e-5)
    wrong = command(*text, "--summary", "--npz", tmp_path / "map.npz")
    assert wrong.code == 2 and "argument --summary: has no weights" in wrong.err


def test_attention_map_of_a_translation(runs, command, tmp_path):
    picture, numbers = tmp_path / "map.png", tmp_path / "map.json"
    outcome = command(
        *("attention-map", runs / "transformer", "I see 7 of you."),
        *("--out", picture, "--json", numbers),
    )
    assert outcome.code == 0, outcome.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    layers = json.loads(numbers.read_text())["layers"]
    assert list(layers) == [f"decoder.{n}.cross_attention" for n in range(2)]
    for each in layers.values():
        assert each["keys"][-1] == "</s>" and each["queries"][0] == "<s>"
        weights = torch.tensor(each["weights"])
        assert weights.shape == (2, len(each["queries"]), len(each["keys"]))
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    whole = command(
        "attention-map", runs / "transformer", "I see 7 of you.", "--json", "--layers", "0,2"
    )
    layers = json.loads(whole.out)["layers"]
    assert [each["queries"] == each["keys"] for each in layers.values()] == [True, True]
    assert layers["decoder.0.attention"]["keys"][0] == "<s>"


def test_wrong_models(runs, command, monkeypatch, tmp_path):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "latin.txt"
    text.write_bytes(b"caf\xe9")
    gpt, bert = runs / "gpt", runs / "bert"
    map_ = ("attention-map", gpt, "hello", "--npz", tmp_path / "m.npz")
    wrong = {
        ("generate", tmp_path / "no"): "does not exist",
        ("generate", bert): "must be a GPT, ",
        ("embed", gpt, "x"): "must be a BERT, ",
        ("embed", "minilm", "x"): "run fused-attention fetch minilm",
        ("generate", tmp_path): "got 'resnet'",
        ("generate", empty): "must hold config.json",
        ("generate", gpt, "--temperature", "-1"): "temperature: must be finite and at least 0",
        ("generate", gpt, "--top-p", "2"): "--top-p: must be in (0, 1]",
        ("generate", gpt, "--prompt", ""): "--prompt: must not be empty",
        ("embed", bert): "give sentences, or a file of them with --file",
        ("embed", bert, "--file", text): "it is not UTF-8",
        ("translate", gpt, "x"): "must be a Transformer",
        (*map_[:3],): "say where to: --out for a picture",
        (*map_, "--layers", "2"): "--layers: must be below 2, got 2",
        (*map_, "--heads", "7"): "heads: must be in [0, 2), got 7",
        (*map_, "--layers", "x"): "must be a whole number, got 'x'",
        ("attention-map", bert, "w " * 40, *map_[3:]): "must have at most 24 tokens",
    }
    for arguments, message in wrong.items():
        outcome = command(*arguments)
        assert outcome.code == 2, (arguments, outcome)
        assert message in outcome.err, (arguments, outcome.err)
        assert outcome.err.count("\n") == 1


def test_fetch(command, monkeypatch, tmp_path):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    outcome = command("fetch")
    assert outcome.code == 0
    assert all(name in outcome.out for name in datasets.DATASETS)
    wrong = command("fetch", "bible")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "argument DATASET: must be of shakespeare, " in wrong.err

    def download(dataset, folder):
        raise fetch.FetchError(f"{dataset.name}: could not fetch it")

    monkeypatch.setattr(fetch, "download", download)
    failed = command("fetch", "minilm")
    assert (failed.code, failed.err) == (2, "fused-attention fetch: minilm: could not fetch it\n")
    (tmp_path / "minilm").mkdir()
    assert f"minilm is in {tmp_path / 'minilm'}" in command("fetch", "minilm").out
    told = json.loads(command("fetch", "minilm", "--json").out)
    assert told[0]["folder"] == str(tmp_path / "minilm")
