"""A run made ready: its model, its batches and its tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from fused_attention.models.pretrained import PretrainedModel
from fused_attention.training import tokenization
from fused_attention.training.batch import Batch, Batches
from fused_attention.training.seeds import seed_of
from fused_attention.training.tokenization import Tokenizer

Model = TypeVar("Model", bound=PretrainedModel)


class Prepared(NamedTuple):
    """All that a run needs."""

    model: PretrainedModel
    batches: Batches
    validation: list[Batch]
    tokenizer: Tokenizer
    fingerprint: str  # of the data
    judge: Callable[[PretrainedModel], dict[str, float]] | None = None  # a trained model's worth
    target_tokenizer: Tokenizer | None = None  # where targets have another one


def fingerprint(parts: Iterable[str]) -> str:
    """SHA-256 of texts: a resumed run has to read what it began with."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def built(build: Callable[[], Model], seed: int) -> Model:
    """A model whose initial values are those of the seed."""
    torch.manual_seed(seed_of("model", seed))
    return build()


def tokenizer_for(
    kind: str,
    vocab_size: int,
    texts: Sequence[str],
    folder: Path,
    *,
    frame: bool = False,
    name: str = tokenization.NAME,
) -> Tokenizer:
    """The tokenizer of this name in the folder, or a new one of this kind for the texts.

    Args:
        kind: characters, words or bpe.
        vocab_size: of words and bpe, at most.
        frame: whether `encode` puts BEGIN and END around a text unless told otherwise.
    """
    if (folder / name).exists():
        return tokenization.load(folder, name)
    special = tokenization.SPECIAL
    if kind == "characters":
        return tokenization.character_tokenizer(
            "".join(texts), special if frame else (), frame=frame
        )
    lines = (line for text in texts for line in text.splitlines(keepends=True))
    learn = tokenization.word_tokenizer if kind == "words" else tokenization.train_bpe
    return learn(lines, vocab_size, special, frame=frame)
