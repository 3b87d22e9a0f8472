"""What a run trains on what: everything that a command line says and a resumed run reads back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fused_attention.checks import wrong_value
from fused_attention.files import write_text
from fused_attention.training.corpora import DATES, PAIRS, TEXTS, WORDS
from fused_attention.training.settings import Settings

NAME = "run.json"
FORMAT = 1
TOKENIZERS = ("characters", "words", "bpe")
# Fields of a recipe that mean something to the recurrent models only, and to all others only.
SEQ2SEQ_ONLY = frozenset(
    (
        *("attention", "cell", "width", "input_feeding", "reverse_source", "directions"),
        *("embedding_dim", "label_smoothing", "target_tokenizer"),
    )
)
NOT_SEQ2SEQ = frozenset({"heads"})


class RunError(ValueError):
    """A folder holds no run, or one that cannot be gone on with; the message is one sentence."""


@dataclass(frozen=True)
class Recipe:
    """A model's size and its data.

    Attributes:
        family: gpt, bert, transformer or seq2seq.
        data: a dataset's name or the path of the user's own.
        tokenizer: characters, words (parted by white space) or bpe, learned from the data.
        vocab_size: of words and bpe, at most.
        layers: blocks or recurrent layers; of encoder and decoder each.
        heads, dim: attention heads and width; seq2seq has one head.
        context: tokens that the model sees at most.
        dropout: in training.
        batch_tokens: per batch and process.
        words: translators' data are sentences of at most so many words (translations: two more), in
            lower case; 0 takes all, as they are.
        next_sentence: BERT learns beside the masked tokens whether one text follows another, as in
            its paper. Off by default: later work found no use for it in the model's other tasks
            (Liu et al. 2019, section 4.2), and whole passages give masked tokens more context.
        held_out: sentences (of gpt and bert: percent of the text) that the model never trains on.
        attention, cell, width, input_feeding, reverse_source, label_smoothing: seq2seq's, as in
            Seq2SeqConfig.
        directions: in which seq2seq's encoder reads the source, 1 or 2.
        embedding_dim: of seq2seq's tokens; 0 is dim.
        target_tokenizer: of seq2seq's targets; empty: both sides share one, and its embeddings.

    Raises:
        ValueError: one of them is out of its range.
    """

    family: str
    data: str
    tokenizer: str = "bpe"
    vocab_size: int = 4000
    layers: int = 4
    heads: int = 4
    dim: int = 128
    context: int = 128
    dropout: float = 0.1
    batch_tokens: int = 2048
    words: int = 0
    next_sentence: bool = False
    held_out: int = 10
    attention: str = "bahdanau"
    cell: str = "gru"
    width: float = 10.0
    input_feeding: bool = False
    reverse_source: bool = False
    directions: int = 2
    embedding_dim: int = 0
    label_smoothing: float = 0.0
    target_tokenizer: str = ""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "heads", "dim", "context", "batch_tokens", "held_out"):
            if getattr(self, name) < 1:
                wrong_value(name, "must be at least 1", getattr(self, name))
        if self.dim % self.heads:
            wrong_value("dim", f"must be divisible by heads {self.heads}", self.dim)
        if not 0 <= self.dropout < 1:
            wrong_value("dropout", "must be in [0, 1)", self.dropout)
        if self.directions not in (1, 2):
            wrong_value("directions", "must be 1 or 2", self.directions)
        if self.embedding_dim < 0:
            wrong_value("embedding_dim", "must be at least 0", self.embedding_dim)
        for name, kinds in (("tokenizer", TOKENIZERS), ("target_tokenizer", (*TOKENIZERS, ""))):
            if getattr(self, name) not in kinds:
                rule = f"must be one of {', '.join(TOKENIZERS)}"
                wrong_value(name, rule, getattr(self, name))

    @property
    def lower_case(self) -> bool:
        """Whether the data are in lower case, and what a model is asked has to be."""
        return self.words > 0 or self.data in (DATES, WORDS)


@dataclass(frozen=True)
class Run:
    """A recipe and the settings it is trained with; stored in the folder of the run."""

    recipe: Recipe
    settings: Settings

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write run.json; the fingerprint is that of the data."""
        values = {"format": FORMAT, "data": fingerprint, **dataclasses.asdict(self)}
        write_text(folder / NAME, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> tuple[Run, str]:
        """The run of a folder and its data's fingerprint.

        Raises:
            RunError: there is none.
        """
        path = folder / NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}")
            run = cls(Recipe(**values["recipe"]), Settings(**values["settings"]))
            return run, str(values["data"])
        except FileNotFoundError:
            raise RunError(f"{folder}: must be the folder of a run, and holds no {NAME}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: cannot be read as a run ({error!r})") from None


# nanoGPT's recipe for a CPU: a character-level GPT of 0.8 million parameters.
GPT = Run(
    Recipe(
        family="gpt", data=TEXTS, tokenizer="characters", context=64, dropout=0.0, batch_tokens=768
    ),
    Settings(steps=2000, evaluate_every=500, checkpoint_every=500, log_every=50),
)
BERT = Run(
    Recipe(family="bert", data=TEXTS, held_out=5),
    Settings(steps=2000, beta2=0.98, evaluate_every=500, checkpoint_every=500, log_every=50),
)
# 2.8 million parameters, short English sentences into French.
TRANSFORMER = Run(
    Recipe(
        family="transformer",
        data=PAIRS,
        layers=3,
        dim=160,
        context=64,
        batch_tokens=1280,  # the decoder's tokens then fill one shape, see PackedBatch.filled_up
        words=7,
        held_out=500,
    ),
    Settings(
        steps=2400,
        learning_rate=2e-3,
        schedule="inverse_sqrt",
        warmup=300,
        beta2=0.98,
        weight_decay=0.0,
        precision="auto",
        evaluate_every=600,
        checkpoint_every=600,
        log_every=50,
    ),
)
# Dates into ISO 8601, which take seconds; the 2014 way with --attention none.
SEQ2SEQ = Run(
    Recipe(
        family="seq2seq",
        data=DATES,
        tokenizer="characters",
        target_tokenizer="characters",
        layers=1,
        heads=1,
        dim=128,
        embedding_dim=48,
        dropout=0.0,
        batch_tokens=1536,
        held_out=500,
    ),
    Settings(
        steps=400,
        learning_rate=4e-3,
        warmup=20,
        final_ratio=0.01,
        weight_decay=0.0,
        evaluate_every=100,
        checkpoint_every=100,
        log_every=50,
    ),
)
# English words into phonemes.
PHONEMES = Run(
    dataclasses.replace(
        SEQ2SEQ.recipe,
        data=WORDS,
        target_tokenizer="words",
        cell="lstm",
        width=2.0,
        batch_tokens=1200,
        held_out=1000,
    ),
    dataclasses.replace(
        SEQ2SEQ.settings,
        steps=1200,
        learning_rate=3e-3,
        evaluate_every=200,
        checkpoint_every=200,
    ),
)
# Short English sentences into French.
SENTENCES = Run(
    dataclasses.replace(
        SEQ2SEQ.recipe,
        data=PAIRS,
        tokenizer="bpe",
        target_tokenizer="bpe",
        dim=256,
        embedding_dim=128,
        dropout=0.1,
        batch_tokens=1400,
        words=7,
    ),
    dataclasses.replace(
        SEQ2SEQ.settings,
        steps=2400,
        learning_rate=2e-3,
        warmup=100,
        evaluate_every=300,
        checkpoint_every=300,
        patience=3,
    ),
)
DEFAULTS: dict[str, Run] = {
    "gpt": GPT,
    "bert": BERT,
    "transformer": TRANSFORMER,
    "seq2seq": SEQ2SEQ,
}


def default_run(family: str, data: str | None = None) -> Run:
    """A family's run on its own data, on another dataset or on the user's own.

    The recurrent models have a run for each dataset; on the user's own that of sentences.
    """
    run = DEFAULTS[family]
    if family == "seq2seq" and data not in (None, run.recipe.data):
        run = PHONEMES if data == WORDS else SENTENCES
    return run if data is None else changed(run, {"data": data})


def changed(run: Run, changes: dict[str, Any]) -> Run:
    """The run with some fields of its recipe or its settings replaced.

    Raises:
        ValueError: a field is out of its range.
    """
    in_recipe = {field.name for field in dataclasses.fields(Recipe)}
    recipe = {name: value for name, value in changes.items() if name in in_recipe}
    settings = {name: value for name, value in changes.items() if name not in in_recipe}
    return Run(
        dataclasses.replace(run.recipe, **recipe), dataclasses.replace(run.settings, **settings)
    )
