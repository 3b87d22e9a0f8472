"""What a run trains on what: everything that a command line says and a resumed run reads back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fused_attention.checks import wrong_value
from fused_attention.files import write_text
from fused_attention.training.corpora import PAIRS, TEXTS
from fused_attention.training.settings import Settings

NAME = "run.json"
FORMAT = 1
TOKENIZERS = ("characters", "bpe")


class RunError(ValueError):
    """A folder holds no run, or one that cannot be gone on with; the message is one sentence."""


@dataclass(frozen=True)
class Recipe:
    """A model's size and its data.

    Attributes:
        family: gpt, bert or transformer.
        data: a dataset's name or the path of the user's own.
        tokenizer: characters, or bpe: learned from the data.
        vocab_size: of bpe, at most.
        layers: blocks; of encoder and decoder each.
        heads, dim: attention heads and width.
        context: tokens that the model sees at most.
        dropout: in training.
        batch_tokens: per batch and process.
        words: the transformer's data are sentences of at most so many words (translations: two
            more), in lower case; 0 takes all, as they are.
        next_sentence: BERT learns beside the masked tokens whether one text follows another, as in
            its paper. Off by default: later work found no use for it in the model's other tasks
            (Liu et al. 2019, section 4.2), and whole passages give masked tokens more context.
        held_out: sentences (of gpt: percent of the text) that the model never trains on.

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

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "heads", "dim", "context", "batch_tokens", "held_out"):
            if getattr(self, name) < 1:
                wrong_value(name, "must be at least 1", getattr(self, name))
        if self.dim % self.heads:
            wrong_value("dim", f"must be divisible by heads {self.heads}", self.dim)
        if not 0 <= self.dropout < 1:
            wrong_value("dropout", "must be in [0, 1)", self.dropout)
        if self.tokenizer not in TOKENIZERS:
            wrong_value("tokenizer", f"must be one of {', '.join(TOKENIZERS)}", self.tokenizer)


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
DEFAULTS: dict[str, Run] = {"gpt": GPT, "bert": BERT, "transformer": TRANSFORMER}


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
