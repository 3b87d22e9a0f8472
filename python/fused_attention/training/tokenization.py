"""Tokenizers: all of them are tokenizer.json files of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_attention.files import write_text

NAME = "tokenizer.json"
TARGET_NAME = "target_tokenizer.json"  # of a model that has another one for its targets
PAD, BEGIN, END, UNKNOWN, MASK = "<pad>", "<s>", "</s>", "<unk>", "<mask>"
SPECIAL = (PAD, BEGIN, END, UNKNOWN, MASK)  # numbered from 0 in this order
_CHUNK = 1 << 16  # characters that are encoded in one piece

Tokenizer = Any  # tokenizers.Tokenizer, which is imported when it is needed


def character_tokenizer(
    text: str, special: Sequence[str] = (), *, frame: bool = False
) -> Tokenizer:
    """One token for each symbol of a text, in the order of their code points.

    Args:
        text: holds all symbols.
        special: tokens to number before them.
        frame: whether `encode` puts BEGIN and END around a text unless told otherwise.
    """
    from tokenizers import Tokenizer as Build
    from tokenizers import decoders, models

    symbols = {symbol: n for n, symbol in enumerate((*special, *sorted(set(text))))}
    tokenizer = Build(models.BPE(vocab=symbols, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(special))
    return _framed(tokenizer) if frame else tokenizer


def word_tokenizer(
    texts: Iterable[str], vocab_size: int, special: Sequence[str] = SPECIAL, *, frame: bool = False
) -> Tokenizer:
    """The most frequent words of texts, parted by white space; others become UNKNOWN."""
    from tokenizers import Tokenizer as Build
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = Build(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _framed(tokenizer) if frame else tokenizer


def train_bpe(
    texts: Iterable[str], vocab_size: int, special: Sequence[str] = SPECIAL, *, frame: bool = False
) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; GPT-2) learned from texts; see above for `frame`."""
    from tokenizers import Tokenizer as Build
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Build(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _framed(tokenizer) if frame else tokenizer


def _framed(tokenizer: Tokenizer) -> Tokenizer:
    from tokenizers.processors import TemplateProcessing

    ids = [(symbol, tokenizer.token_to_id(symbol)) for symbol in (BEGIN, END)]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A {END}", pair=f"{BEGIN} $A {END} $B:1 {END}:1", special_tokens=ids
    )
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str) -> Tensor:
    """A long text as int64 [tokens]; cut after newlines, where tokens seldom reach across."""
    pieces = []
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + _CHUNK) + 1 or len(text)
        pieces.append(text[begin:end])
        begin = end
    encoded = tokenizer.encode_batch(pieces, add_special_tokens=False)
    parts = [torch.tensor(piece.ids, dtype=torch.int64) for piece in encoded]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def encode_sentences(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[list[int]]:
    """Each sentence's ids, without special tokens."""
    encoded = tokenizer.encode_batch(list(sentences), add_special_tokens=False)
    return [piece.ids for piece in encoded]


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself."""
    return [tokenizer.decode([one], skip_special_tokens=False) for one in ids]


def save(tokenizer: Tokenizer, folder: Path, name: str = NAME) -> None:
    write_text(folder / name, tokenizer.to_str(pretty=True))


def load(folder: Path, name: str = NAME) -> Tokenizer:
    """The tokenizer of a model's folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its file is none.
    """
    from tokenizers import Tokenizer as Build

    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer: {folder} must hold {name}, and does not")
    try:
        return Build.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"tokenizer: cannot read {path} ({error})") from None
