"""Tokenizers: what is encoded is decoded, and a file holds all of it."""

from __future__ import annotations

import pytest
import torch

from fused_attention.training import tokenization
from fused_attention.training.gguf_tokenizer import tokenizer_from_gguf
from fused_attention.training.tokenization import SPECIAL

TEXT = "To be, or not to be:\nthat is the question.\n\nWhether 'tis nobler \u00e9\u00e8 1234\n" * 30


@pytest.mark.parametrize("frame", [False, True])
@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_round_trip(tmp_path, kind, frame):
    if kind == "bpe":
        made = tokenization.train_bpe([TEXT], 300, frame=frame)
    else:
        made = tokenization.character_tokenizer(TEXT, SPECIAL if frame else (), frame=frame)
    tokenization.save(made, tmp_path)
    for tokenizer in (made, tokenization.load(tmp_path)):
        ids = tokenization.encode_text(tokenizer, TEXT)
        assert ids.dtype == torch.int64
        assert tokenizer.decode(ids.tolist()) == TEXT
        framed = tokenizer.encode("to be").ids
        plain = tokenization.encode_sentences(tokenizer, ["to be"])[0]
        assert framed == ([1, *plain, 2] if frame else plain)
        assert tokenizer.decode(framed) == "to be"


def test_characters_are_in_order():
    tokenizer = tokenization.character_tokenizer("hello")
    assert tokenizer.get_vocab() == {"e": 0, "h": 1, "l": 2, "o": 3}
    assert tokenization.encode_text(tokenizer, "hole").tolist() == [1, 3, 2, 0]


def test_special_tokens_come_first():
    tokenizer = tokenization.train_bpe([TEXT], 300)
    assert [tokenizer.token_to_id(symbol) for symbol in SPECIAL] == [0, 1, 2, 3, 4]


def test_words_are_the_most_frequent_ones():
    tokenizer = tokenization.word_tokenizer(["B AA B", "B AA N", "K"], 8, frame=True)
    assert tokenizer.get_vocab_size() == 8
    assert tokenizer.encode("AA B  K").ids == [1, 6, 5, 7, 2]
    assert tokenizer.encode("B N").ids == [1, 5, SPECIAL.index("<unk>"), 2]
    assert tokenizer.decode([1, 5, 6, 7, 2]) == "B AA K"
    assert tokenization.token_texts(tokenizer, [1, 6, 7]) == ["<s>", "AA", "K"]


@pytest.mark.parametrize("text", ["", "no newline at all " * 9000, "line\n" * 40000])
def test_long_texts_are_cut_without_a_trace(text):
    tokenizer = tokenization.character_tokenizer("abcdefghijklmnopqrstuvwxyz \n")
    assert tokenizer.decode(tokenization.encode_text(tokenizer, text).tolist()) == text


def test_no_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer: .* must hold tokenizer.json"):
        tokenization.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer: cannot read .*tokenizer.json"):
        tokenization.load(tmp_path)


class Fields(dict):
    def field(self, name, default=None):
        return self.get(name, default)


def test_the_tokenizer_of_a_gguf_file():
    tokens = ["<|end|>", "a", "b", "1", "2", "12", "ab", "\u0120"]
    fields = Fields(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": ["a b", "1 2"],
            "tokenizer.ggml.token_type": [3, *[1] * 7],
        }
    )
    tokenizer = tokenizer_from_gguf(fields)
    assert tokenizer.encode("ab 12<|end|>").tokens == ["ab", "\u0120", "1", "2", "<|end|>"]
    assert tokenizer.decode(tokenizer.encode("ab 12").ids) == "ab 12"
    fields["tokenizer.ggml.pre"] = "default"
    assert tokenizer_from_gguf(fields).encode("12").tokens == ["12"]
    fields["tokenizer.ggml.pre"] = "other"
    with pytest.raises(ValueError, match="tokenizer.ggml.pre: must be one of default, gpt-2"):
        tokenizer_from_gguf(fields)
    fields["tokenizer.ggml.model"] = "llama"
    with pytest.raises(ValueError, match="tokenizer.ggml.model: must be gpt2"):
        tokenizer_from_gguf(fields)
