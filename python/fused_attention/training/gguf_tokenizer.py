"""The tokenizer in a GGUF file, as one of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from fused_attention.checks import wrong_value
from fused_attention.training.tokenization import Tokenizer

CONTROL = 3  # GGUF's token type of special tokens


class Fields(Protocol):
    """What a GGUF file says under its names."""

    def field(self, name: str, default: Any = None) -> Any: ...


def tokenizer_from_gguf(file: Fields) -> Tokenizer:
    """The byte-level BPE of a GGUF file.

    Raises:
        ValueError: it has a tokenizer of another kind.
    """
    from tokenizers import Tokenizer as Build
    from tokenizers import decoders, models

    model = file.field("tokenizer.ggml.model")
    if model != "gpt2":
        wrong_value("tokenizer.ggml.model", "must be gpt2, a byte-level BPE", repr(model))
    before = file.field("tokenizer.ggml.pre", "default")
    if before not in _PRE_TOKENIZERS:
        rule = f"must be one of {', '.join(_PRE_TOKENIZERS)}"
        wrong_value("tokenizer.ggml.pre", rule, repr(before))
    tokens = file.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in file.field("tokenizer.ggml.merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Build(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[before]()
    tokenizer.decoder = decoders.ByteLevel()
    types = file.field("tokenizer.ggml.token_type", [])
    special = [token for token, type_ in zip(tokens, types, strict=False) if type_ == CONTROL]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _bytes() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits_apart() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _bytes()])


_PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "default": _bytes,
    "gpt-2": _bytes,
    "smollm": _digits_apart,
}
