"""Runs in folders: recipes, preparing data, resuming, exporting."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from fused_attention.models.bert import BERT
from fused_attention.models.gpt import GPT
from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.training import datasets, recipe, runs, tokenization
from fused_attention.training.processes import Processes
from fused_attention.training.recipe import DEFAULTS, RunError, changed, default_run

TEXT = "".join(f"Line {n} of a play, in which {n % 7} people speak.\n" for n in range(400))
SMALL = {
    "layers": 2,
    "heads": 2,
    "dim": 16,
    "context": 24,
    "batch_tokens": 96,
    "vocab_size": 300,
    "held_out": 20,
    "steps": 4,
    "checkpoint_every": 2,
    "log_every": 1,
}
KINDS = {"gpt": GPT, "bert": BERT}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text(TEXT)
    return path


def small(family, data, **changes):
    return changed(DEFAULTS[family], {**SMALL, "data": str(data), **changes})


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("tokenizer", ["characters", "bpe"])
def test_a_run_is_gone_on_with_and_exported(tmp_path, text, family, tokenizer):
    plan = small(family, text, tokenizer=tokenizer)
    whole, _ = runs.begin(plan, tmp_path / "whole", Processes())
    losses = [entry["loss"] for entry in whole.run().entries]
    assert len(losses) == 4 and "validation_loss" in whole.history.entries[-1]

    first, _ = runs.begin(plan, tmp_path / "run", Processes())
    for _ in range(2):
        first.train_step()
    first.save()
    second, prepared = runs.go_on(tmp_path / "run", Processes())
    assert second.step == 2
    assert [entry["loss"] for entry in second.run().entries] == losses[2:]

    model = KINDS[family].from_pretrained(tmp_path / "run")
    assert model.config.dim == 16 and not model.training
    for name, weight in second.model.eval().named_parameters():
        assert torch.equal(weight, dict(model.named_parameters())[name]), name
    ids = tokenization.load(tmp_path / "run").encode("Line 3").ids
    assert prepared.tokenizer.decode(ids) == "Line 3"


PAIRS = "".join(f"i see {n} of you.\tje vois {n} de toi.\n" for n in range(90))
RECURRENT = {**SMALL, "heads": 1, "embedding_dim": 8, "batch_tokens": 200, "evaluate_every": 2}


@pytest.mark.parametrize("attention", ["none", "bahdanau", "luong-general", "local-p"])
@pytest.mark.parametrize("target_tokenizer", ["", "words"])
def test_a_recurrent_run_is_gone_on_with_and_judged(tmp_path, attention, target_tokenizer):
    data = tmp_path / "pairs.tsv"
    data.write_text(PAIRS)
    changes = {"attention": attention, "target_tokenizer": target_tokenizer, "data": str(data)}
    plan = changed(default_run("seq2seq"), {**RECURRENT, **changes, "dropout": 0.1, "width": 2.0})
    whole, _ = runs.begin(plan, tmp_path / "whole", Processes())
    wanted = [(entry["loss"], entry.get("validation_loss")) for entry in whole.run().entries]

    first, _ = runs.begin(plan, tmp_path / "run", Processes())
    for _ in range(2):
        first.train_step()
    first.save()
    second, prepared = runs.go_on(tmp_path / "run", Processes())
    told = [(entry["loss"], entry.get("validation_loss")) for entry in second.run().entries]
    assert told == wanted[2:]
    assert (prepared.target_tokenizer is None) == (target_tokenizer == "")
    model = Seq2Seq.from_pretrained(tmp_path / "run")
    assert model.config.attention == attention
    assert (model.config.target_vocab_size is None) == (target_tokenizer == "")
    judged = prepared.judge(model)
    assert judged.keys() == {"bleu", "exact_match", "held_out"} and judged["held_out"] == 20


def test_recurrent_runs_by_their_data(tmp_path, monkeypatch):
    assert default_run("gpt") == DEFAULTS["gpt"]
    by_data = {name: default_run("seq2seq", name).recipe for name in ("dates", "cmudict", "x.tsv")}
    assert [each.data for each in by_data.values()] == list(by_data)
    assert [each.target_tokenizer for each in by_data.values()] == ["characters", "words", "bpe"]
    assert [each.lower_case for each in by_data.values()] == [True, True, True]
    assert not changed(default_run("seq2seq", "x.tsv"), {"words": 0}).recipe.lower_case
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run fused-attention fetch cmudict"):
        runs.begin(default_run("seq2seq", "cmudict"), tmp_path / "run", Processes())
    assert not (tmp_path / "run").exists()


def test_a_run_with_next_sentences_is_gone_on_with_and_judged(tmp_path, text):
    plan = small("bert", text, next_sentence=True)
    whole, _ = runs.begin(plan, tmp_path / "whole", Processes())
    losses = [entry["loss"] for entry in whole.run().entries]
    first, _ = runs.begin(plan, tmp_path / "run", Processes())
    for _ in range(2):
        first.train_step()
    first.save()
    second, prepared = runs.go_on(tmp_path / "run", Processes())
    assert [entry["loss"] for entry in second.run().entries] == losses[2:]
    model = BERT.from_pretrained(tmp_path / "run")
    assert model.config.pooler and model.config.nsp_head
    assert 0.0 <= prepared.judge(model)["next_sentence_accuracy"] <= 1.0


def test_a_run_keeps_the_precision_that_it_began_with(tmp_path, text, monkeypatch):
    for known, wanted in (({}, "fp32"), ({"avx512_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda k=known: k, raising=False)
        folder = tmp_path / wanted
        runs.begin(small("gpt", text, precision="auto"), folder, Processes())
        assert recipe.Run.load(folder)[0].settings.precision == wanted
    assert runs.go_on(tmp_path / "fp32", Processes())[0].settings.precision == "fp32"


def test_validation_text_is_not_trained_on(tmp_path, text):
    plan = small("gpt", text, tokenizer="characters")
    _, prepared = runs.begin(plan, tmp_path / "run", Processes())
    trained = prepared.tokenizer.decode(prepared.batches.tokens.tolist())
    assert trained == TEXT[: len(TEXT) * 80 // 100]
    rows = torch.cat([batch.inputs["input_ids"] for batch in prepared.validation])
    assert prepared.tokenizer.decode(rows[0].tolist()) in TEXT[len(trained) :]
    assert prepared.tokenizer.decode(rows[-1].tolist()) == TEXT[-25:-1]


def test_a_folder_takes_one_run(tmp_path, text):
    plan = small("gpt", text)
    runs.begin(plan, tmp_path / "run", Processes())
    with pytest.raises(RunError, match="holds a run already; --resume .* goes on with it"):
        runs.begin(plan, tmp_path / "run", Processes())


def test_changed_data_are_noticed(tmp_path, text):
    runs.begin(small("gpt", text), tmp_path / "run", Processes())
    text.write_text(TEXT + "More.\n")
    with pytest.raises(RunError, match="play.txt must be what the run began with, and differs"):
        runs.go_on(tmp_path / "run", Processes())


def test_nothing_is_written_for_wrong_data(tmp_path):
    with pytest.raises(ValueError, match="data: must be shakespeare, a text file"):
        runs.begin(small("gpt", tmp_path / "no.txt"), tmp_path / "run", Processes())
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(ValueError, match="data: must have more than 24 tokens"):
        runs.begin(small("gpt", tmp_path / "short.txt"), tmp_path / "run", Processes())
    assert not (tmp_path / "run").exists()


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="must be the folder of a run, and holds no run.json"):
        runs.go_on(tmp_path, Processes())
    path = tmp_path / recipe.NAME
    for broken in ("", "{}", '{"format": 1, "recipe": {}, "settings": {}, "data": ""}', "[]"):
        path.write_text(broken)
        with pytest.raises(RunError, match="run.json: cannot be read as a run"):
            runs.go_on(tmp_path, Processes())


def test_a_run_is_stored_as_it_is(tmp_path):
    for run in DEFAULTS.values():
        run.save(tmp_path, "0" * 64)
        assert recipe.Run.load(tmp_path) == (run, "0" * 64)
    values = json.loads((tmp_path / recipe.NAME).read_text())
    assert values["recipe"] == dataclasses.asdict(run.recipe)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"layers": 0}, "layers: must be at least 1, got 0"),
        ({"heads": 3}, "dim: must be divisible by heads 3, got 16"),
        ({"dropout": 1.0}, r"dropout: must be in \[0, 1\), got 1.0"),
        ({"tokenizer": "signs"}, "tokenizer: must be one of characters, words, bpe, got signs"),
        ({"target_tokenizer": "x"}, "target_tokenizer: must be one of characters, words, bpe, got"),
        ({"directions": 3}, "directions: must be 1 or 2, got 3"),
        ({"embedding_dim": -1}, "embedding_dim: must be at least 0, got -1"),
        ({"steps": 0}, "steps: must be at least 1, got 0"),
    ],
)
def test_wrong_recipes(wrong, message):
    with pytest.raises(ValueError, match=message):
        small("gpt", "x", **wrong)
