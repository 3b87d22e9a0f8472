"""Experiments with recurrent encoder-decoders, each a function that gives a report.

All models are trained by the recipes of `fused-attention train seq2seq`; seq2seq.py judges and
stores the reports, seq2seq_figures.py draws them.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fused_attention.models.g2p import load_g2p, pronounce
from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_steps import align
from fused_attention.training import Trainer
from fused_attention.training.aligning import TextAlignment, align_text
from fused_attention.training.corpora import DATES, WORDS, hold_out
from fused_attention.training.datasets import folder_of
from fused_attention.training.families import prepare
from fused_attention.training.metrics import bleu, exact_match
from fused_attention.training.padding import padded
from fused_attention.training.recipe import Run, changed, default_run
from fused_attention.training.tokenization import encode_sentences
from fused_attention.training.translating import Translator, source_ids
from fused_attention.training.translators import pairs_of

DATE = "saturday, may 9, 2018"
WORD = "pronunciation"
SEEDS = (0, 1, 2)
LETTERS = (
    (2, 4),
    (5, 6),
    (7, 8),
    (9, 10),
    (11, 12),
    (13, 14),
    (15, 20),
)  # of words judged together


class Trained(NamedTuple):
    """A model after its run."""

    model: Seq2Seq
    translator: Translator
    sources: list[str]  # held out
    references: list[list[str]]
    figures: dict[str, Any]  # losses and times


def trained(run: Run) -> Trained:
    """Train a model by its recipe."""
    with tempfile.TemporaryDirectory() as empty:
        prepared = prepare(run, Path(empty))
    trainer = Trainer(
        prepared.model, prepared.batches, run.settings, validation=prepared.validation
    )
    wall, cpu = time.perf_counter(), time.process_time()
    entries = trainer.run().entries
    figures = {
        "steps": trainer.step,
        "parameters": sum(parameter.numel() for parameter in prepared.model.parameters()),
        "validation_loss": entries[-1]["validation_loss"],
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }
    told = f"{figures['steps']} steps, validation loss {figures['validation_loss']:.3f}"
    print(f"{run.recipe.attention}, seed {run.settings.seed}: {told}", file=sys.stderr, flush=True)
    assert isinstance(prepared.model, Seq2Seq)
    translator = Translator(prepared.tokenizer, prepared.target_tokenizer)
    held = hold_out(pairs_of(run.recipe), run.recipe.held_out, run.settings.seed)
    return Trained(prepared.model.eval(), translator, held.sources, held.references, figures)


def dates() -> dict[str, Any]:
    """Dates into ISO 8601 by Bahdanau's attention: exact match, time, an alignment."""
    run = default_run("seq2seq", DATES)
    made = trained(run)
    said = made.translator.translate(made.model, made.sources)
    return {
        "run": dataclasses.asdict(run),
        **made.figures,
        "exact_match": exact_match(said, made.references),
        "held_out": len(said),
        "alignment": as_dict(align_text(made.model, made.translator, DATE)),
    }


def lengths(seeds: Sequence[int] = SEEDS[:1]) -> dict[str, Any]:
    """How well words of every length are pronounced, through one vector and with attention.

    g2p-en, a model of 2014's design with one vector, is judged beside ours. It was trained on all
    of this dictionary, our held-out words among it, so it is better than on unseen words.
    """
    models: dict[str, Any] = {}
    run = changed(default_run("seq2seq", WORDS), {"held_out": 4000})
    for attention in ("none", "bahdanau"):
        runs = []
        for seed in seeds:
            made = trained(changed(run, {"attention": attention, "seed": seed}))
            said = made.translator.translate(made.model, made.sources, beams=1)
            runs.append(
                {
                    "seed": seed,
                    **made.figures,
                    "by_length": by_length(said, made.sources, made.references),
                }
            )
        models[attention] = runs
    said = [
        re.sub(r"\d", "", " ".join(phonemes))
        for phonemes in pronounce(load_g2p(folder_of("g2p-en")), made.sources, max_length=40)
    ]
    models["g2p-en"] = [{"by_length": by_length(said, made.sources, made.references)}]
    return {"run": dataclasses.asdict(run), "models": models}


def by_length(
    said: Sequence[str], sources: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Exact match and BLEU of phonemes for words of so many letters."""
    rows = []
    for first, last in LETTERS:
        chosen = [n for n, source in enumerate(sources) if first <= len(source) <= last]
        own = [said[n] for n in chosen], [references[n] for n in chosen]
        if chosen:
            rows.append(
                {
                    "letters": [first, last],
                    "words": len(chosen),
                    "exact_match": exact_match(*own),
                    "bleu": bleu(*own),
                }
            )
    return rows


def places(seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """Global against local attention on pronunciations, and whether local-p's places rise."""
    run = default_run("seq2seq", WORDS)
    attentions: dict[str, Any] = {}
    for attention in ("local-p", "luong-general"):
        attentions[attention] = runs = []
        for seed in seeds:
            made = trained(changed(run, {"attention": attention, "seed": seed}))
            said = made.translator.translate(made.model, made.sources, beams=1)
            runs.append(
                {"seed": seed, **made.figures, "exact_match": exact_match(said, made.references)}
            )
            if attention == "local-p":
                runs[-1] |= rises(places_of(made))
                runs[-1]["alignment"] = as_dict(align_text(made.model, made.translator, WORD))
    return {"run": dataclasses.asdict(run), "attentions": attentions}


def places_of(made: Trained) -> list[torch.Tensor]:
    """The places of each held-out word's steps, which are given the right phonemes."""
    config, translator = made.model.config, made.translator
    targets = [own[0] for own in made.references]
    source, source_lengths = padded(
        source_ids(translator.tokenizer, made.sources, config.end_token), config.pad_token
    )
    said = encode_sentences(translator.target_tokenizer, targets)
    target, target_lengths = padded(
        [[config.start_token, *ids, config.end_token] for ids in said], config.pad_token
    )
    found = align(made.model, source, target, source_lengths, target_lengths).places
    assert found is not None
    steps = (target_lengths - 1).tolist()
    return [row[:count] for row, count in zip(found, steps, strict=True)]


def rises(words: Sequence[torch.Tensor]) -> dict[str, float]:
    """How monotone the places of words are, each fp32 [steps].

    rank_correlation is the mean of Spearman's over the words, rising the share of steps whose place
    lies behind that of the step before.
    """
    correlations, rising = [], []
    for row in words:
        if len(row) > 2:
            ranks = torch.stack((row.argsort().argsort(), torch.arange(len(row)))).double()
            correlations.append(torch.corrcoef(ranks)[0, 1])
        rising.append(row.diff() > 0)
    return {
        "rank_correlation": float(torch.stack(correlations).mean()),
        "rising": float(torch.cat(rising).double().mean()),
    }


def as_dict(alignment: TextAlignment) -> dict[str, Any]:
    """Plain values for JSON, rounded to what a picture can show."""
    weights = [[round(weight, 3) for weight in row] for row in alignment.weights.tolist()]
    values = alignment._asdict() | {"weights": weights}
    if alignment.places is not None:
        values["places"] = [round(place, 2) for place in alignment.places]
    return values
