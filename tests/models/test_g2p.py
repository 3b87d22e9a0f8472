"""The GRU of g2p-en: a model without attention, from 2014's design, and where it fails."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from fused_attention.models.g2p import CONFIG, LETTERS, PHONEMES, g2p_table, load_g2p, pronounce
from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.weights import to_checkpoint
from fused_attention.training.datasets import data_folder, is_fetched

FETCHED = (data_folder() / "g2p-en").is_dir()
needs_the_weights = pytest.mark.skipif(
    not FETCHED, reason="needs the weights: fused-attention fetch g2p-en"
)


def said_by_cells(arrays: dict[str, numpy.ndarray], word: str) -> list[str]:
    """The same by torch.nn.GRUCell, letter by letter."""
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    cells = {}
    for side in ("enc", "dec"):
        cells[side] = nn.GRUCell(256, 256)
        names = {
            f"{kind}_{at}": f"{side}_{kind[0]}_{at}"
            for kind in ("weight", "bias")
            for at in ("ih", "hh")
        }
        cells[side].load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    h, said, token = torch.zeros(1, 256), list[str](), PHONEMES.index("<s>")
    for letter in [*word, "</s>"]:
        h = cells["enc"](weights["enc_emb"][LETTERS.index(letter)][None], h)
    for _ in range(20):
        h = cells["dec"](weights["dec_emb"][token][None], h)
        token = int((weights["fc_w"] @ h[0] + weights["fc_b"]).argmax())
        if PHONEMES[token] == "</s>":
            break
        said.append(PHONEMES[token])
    return said


def write(path: Path, **changes: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """A file like the package's with random weights."""
    torch.manual_seed(0)
    tensors = to_checkpoint(g2p_table(), Seq2Seq(CONFIG).weights())
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()} | changes
    numpy.savez(path, **arrays)
    return arrays


def test_the_symbols() -> None:
    assert len(LETTERS) == 29 and len(PHONEMES) == 74 == len(set(PHONEMES))
    assert PHONEMES[4:7] == ("AA0", "AA1", "AA2") and PHONEMES[-1] == "ZH"


@torch.no_grad()
def test_random_weights_speak_as_torchs_cells_do(tmp_path: Path) -> None:
    arrays = write(tmp_path / "checkpoint20.npz")
    one, words = load_g2p(tmp_path), ["a", "translation", "supercalifragilistic"]
    assert pronounce(one, words) == [said_by_cells(arrays, word) for word in words]
    assert pronounce(one, ["Ab-c"]) == pronounce(one, ["ab?C"]) and pronounce(one, []) == []


def test_what_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: must be g2p-en's checkpoint20\.npz"):
        load_g2p(tmp_path)
    write(tmp_path / "other.npz", fc_b=numpy.zeros(5, numpy.float32))
    with pytest.raises(ValueError, match="fc_b"):
        load_g2p(tmp_path / "other.npz")
    numpy.savez(tmp_path / "pickled.npz", fc_b=numpy.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_g2p(tmp_path / "pickled.npz")
    with pytest.raises(ValueError, match="words: must not be empty, got ''"):
        pronounce(Seq2Seq(CONFIG).eval(), ["a", ""])


@needs_the_weights
@torch.no_grad()
def test_the_real_model_says_what_the_package_says() -> None:
    path = data_folder() / "g2p-en" / "checkpoint20.npz"
    one, words = load_g2p(path), ["translation", "cat", "bahdanau", "incomprehensibilities"]
    said = dict(zip(words, pronounce(one, words), strict=True))
    assert said["translation"] == ["T", "R", "AE0", "N", "S", "L", "EY1", "SH", "AH0", "N"]
    assert said["cat"] == ["K", "AE1", "T"]
    with numpy.load(path) as arrays:
        assert said == {word: said_by_cells(dict(arrays), word) for word in words}
    # The end of a long word does not come through: there is no B of -bilities any more.
    assert "B" not in said["incomprehensibilities"]


@needs_the_weights
@pytest.mark.skipif(not is_fetched("cmudict"), reason="needs fused-attention fetch cmudict")
def test_one_vector_holds_short_words_and_not_long_ones() -> None:
    lines = (data_folder() / "cmudict" / "dict.txt").read_text("latin-1").splitlines()
    entries = [line.split() for line in lines]
    known = {word.lower(): sounds for word, *sounds in entries if word.isalpha()}
    one = load_g2p(data_folder() / "g2p-en")

    def accuracy(shortest: int, longest: int) -> float:
        words = [word for word in known if shortest <= len(word) <= longest]
        words = words[:: len(words) // 100]
        said = pronounce(one, words, max_length=40)
        right = [found == known[word] for word, found in zip(words, said, strict=True)]
        return sum(right) / len(right)

    assert accuracy(4, 6) > 2 * accuracy(14, 30) > 0
