"""Texts and pairs of sequences: read from a fetched dataset or from the user's own files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from fused_attention.training.datasets import DATASETS, folder_of
from fused_attention.training.dates import date_pairs
from fused_attention.training.seeds import generator

TEXTS, PAIRS, WORDS, DATES = "shakespeare", "tatoeba", "cmudict", "dates"
_SPACES = str.maketrans("\u00a0\u202f\u2009", "   ")  # French typography before ?, ! and :


class DataError(ValueError):
    """A file is not what it has to be; the message is one sentence."""


class Held(NamedTuple):
    """Sentence pairs in two parts that share no source sentence."""

    training: list[tuple[str, str]]
    sources: list[str]
    references: list[list[str]]  # all translations of each of `sources`


def read_text(data: str) -> str:
    """A text: the dataset of this name, a file, or all *.txt files of a folder in their order.

    Raises:
        MissingDataError: the dataset was not fetched.
        DataError: there is nothing to read.
    """
    if data == TEXTS:
        return "".join(_read(path) for path in sorted(folder_of(data).glob("*.txt")))
    path = _existing(data, f"must be {TEXTS}, a text file or a folder of *.txt files")
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"data: must be a folder with *.txt files, {str(path)!r} has none")
    return "\n".join(_read(file) for file in files)


def read_pairs(data: str) -> list[tuple[str, str]]:
    """Pairs of a sequence and its translation, by the name of a dataset or from a file.

    The names are tatoeba (English and French sentences), cmudict (words and their phonemes, which
    spaces part) and dates (in words, and in ISO 8601). A file has source, tab, translation in each
    line, and may have more after another tab.

    Raises:
        MissingDataError: the dataset was not fetched.
        DataError: there is no such file, or a line of it has no tab.
    """
    if data in _PAIRS:
        return _PAIRS[data]()
    return _pairs_of_lines(_existing(data, f"must be {', '.join(_PAIRS)} or a {_PAIR_FILE}"))


def _pairs_of_lines(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        source, tab, rest = line.partition("\t")
        if not tab:
            raise DataError(f"data: {path} must have a tab in each line, line {number} has none")
        pairs.append((source, rest.partition("\t")[0]))
    return pairs


def _pronunciations() -> list[tuple[str, str]]:
    """Words of CMUdict that are letters only, with their phonemes, which lose their stress."""
    pairs = []
    for line in _read(folder_of(WORDS) / "dict.txt").splitlines():
        word, _, phonemes = line.partition("  ")
        word = word.partition("(")[0].lower()  # (1) is another pronunciation of the same word
        if word.isascii() and word.isalpha():
            pairs.append((word, re.sub(r"\d", "", phonemes).strip()))
    return list(dict.fromkeys(pairs))


_PAIRS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    PAIRS: lambda: _pairs_of_lines(folder_of(PAIRS) / "fra.txt"),
    WORDS: _pronunciations,
    DATES: date_pairs,
}
_PAIR_FILE = "file of tab-separated sentence pairs"


def short_pairs(
    pairs: Iterable[tuple[str, str]], source_words: int, target_words: int
) -> list[tuple[str, str]]:
    """Pairs of at most so many words, in lower case and with plain spaces."""
    return [
        (simplify(source), simplify(target))
        for source, target in pairs
        if len(source.split()) <= source_words and len(target.split()) <= target_words
    ]


def simplify(sentence: str) -> str:
    """Lower case and plain spaces."""
    return sentence.lower().translate(_SPACES)


def hold_out(pairs: Iterable[tuple[str, str]], count: int, seed: int) -> Held:
    """Set `count` source sentences aside at random, with all of their translations."""
    translations: dict[str, list[str]] = {}
    for source, target in pairs:
        translations.setdefault(source, []).append(target)
    if count >= len(translations):
        raise DataError(f"data: must hold more than {count} sentences, got {len(translations)}")
    sources = list(translations)
    order = torch.randperm(len(sources), generator=generator("hold out", seed)).tolist()
    held = [sources[n] for n in order[:count]]
    training = [(sources[n], target) for n in order[count:] for target in translations[sources[n]]]
    return Held(training, held, [translations[source] for source in held])


def paragraphs(text: str) -> list[str]:
    """The lines of a text that hold something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _existing(data: str, rule: str) -> Path:
    path = Path(data)
    if not path.exists():
        got = "which holds something else" if data in DATASETS else "which does not exist"
        raise DataError(f"data: {rule}, got {data!r}, {got}")
    return path


def _read(path: Path) -> str:
    """UTF-8, or Latin-1 as older e-texts are; line ends become newlines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"data: cannot read {path} ({error.strerror})") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")
