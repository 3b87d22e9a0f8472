"""A recurrent encoder-decoder of the wild: how English words are said, by the package g2p-en.

It is what Sutskever et al. 2014 describe, in small: a GRU reads the letters, its last state of 256
numbers is all that the other GRU gets. Words that are long or rare do not fit through.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fused_attention.checks import wrong_value
from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_config import Seq2SeqConfig
from fused_attention.models.translation import translate
from fused_attention.models.weights import Entry, Table, from_checkpoint

UNKNOWN, WORD_END, START, END = 1, 2, 2, 3
LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_OTHERS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH"),
    *("T", "TH", "UW", "V", "W", "Y", "Z", "ZH"),
)
# The ARPABET in alphabetical order; the digits of vowels are their stress.
PHONEMES = (
    *("<pad>", "<unk>", "<s>", "</s>"),
    *sorted([*_OTHERS, *(vowel + stress for vowel in _VOWELS for stress in "012")]),
)
MAX_PHONEMES = 20
CONFIG = Seq2SeqConfig(
    vocab_size=len(LETTERS),
    target_vocab_size=len(PHONEMES),
    embedding_dim=256,
    cell="gru",
    dim=256,
    bidirectional=False,
    attention="none",
    pad_token=0,
    start_token=START,
    end_token=END,
)


def g2p_table() -> Table:
    """The names in the package's checkpoint20.npz."""
    names = {"source.weight": "enc_emb", "target.weight": "dec_emb"}
    names |= {"head.weight": "fc_w", "head.bias": "fc_b"}
    for ours, theirs in (("encoder", "enc"), ("decoder", "dec")):
        for kind in ("ih", "hh"):
            names[f"{ours}.rnn.weight_{kind}_l0"] = f"{theirs}_w_{kind}"
            names[f"{ours}.rnn.bias_{kind}_l0"] = f"{theirs}_b_{kind}"
    return Table(tuple(Entry((ours,), (theirs,)) for ours, theirs in names.items()))


def load_g2p(path: str | os.PathLike[str]) -> Seq2Seq:
    """The model of the package g2p-en 2.1.0, in evaluation mode.

    Args:
        path: its checkpoint20.npz, or the folder of that.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: numpy is not installed.
        ValueError: the file holds other weights.
    """
    path = Path(path)
    path = path / "checkpoint20.npz" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"path: must be g2p-en's checkpoint20.npz, got {path}")
    try:
        numpy: Any = import_module("numpy")
    except ModuleNotFoundError as error:
        rule = "must be installed to read .npz files (pip install numpy)"
        raise ModuleNotFoundError(f"numpy: {rule}") from error
    with numpy.load(path, allow_pickle=False) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    model = Seq2Seq(CONFIG)
    from_checkpoint(g2p_table(), tensors, model.weights())
    return model.eval()


def pronounce(
    model: Seq2Seq, words: Sequence[str], *, beams: int = 1, max_length: int = MAX_PHONEMES
) -> list[list[str]]:
    """The phonemes of words, as the package finds them: greedily, at most 20 of them.

    Args:
        model: from `load_g2p`.
        words: each of at least one symbol; what is no letter is an unknown one.
        beams: hypotheses that are kept.
        max_length: phonemes of a word, their end included.

    Raises:
        ValueError: a word is empty, or a number is below 1.
    """
    if not all(words):
        wrong_value("words", "must not be empty", repr(""))
    if not words:
        return []
    known = {letter: n for n, letter in enumerate(LETTERS) if len(letter) == 1}
    rows = [[known.get(letter, UNKNOWN) for letter in word.lower()] for word in words]
    lengths = torch.tensor([len(row) + 1 for row in rows])
    source = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for n, row in enumerate(rows):
        source[n, : len(row) + 1] = torch.tensor([*row, WORD_END])
    device = model.head.weight.device
    found = translate(
        model, source.to(device), lengths.to(device), beams=beams, max_length=max_length
    )
    return [[PHONEMES[token] for token in best.tokens] for best, *_ in found]
