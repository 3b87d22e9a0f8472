"""Sentences through an encoder-decoder and its tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fused_attention.models.translation import EncoderDecoder, translate
from fused_attention.training.padding import padded
from fused_attention.training.tokenization import Tokenizer, encode_sentences

BATCH = 64


def source_ids(tokenizer: Tokenizer, sentences: Sequence[str], end: int) -> list[list[int]]:
    """Ids as the encoder was trained on them: the sentence and the end."""
    return [[*ids, end] for ids in encode_sentences(tokenizer, sentences)]


class Translator(NamedTuple):
    """What turns sentences into an encoder-decoder's tokens, and its tokens into sentences."""

    tokenizer: Tokenizer
    target_tokenizer: Tokenizer | None = None  # None: the same

    def translate(
        self,
        model: EncoderDecoder,
        sentences: Sequence[str],
        *,
        beams: int = 4,
        length_penalty: float = 0.6,
    ) -> list[str]:
        """The best translation of each sentence that beam search finds.

        Raises:
            ValueError: beams or length_penalty is out of its range.
        """
        ids = source_ids(self.tokenizer, sentences, model.config.end_token)
        device = next(model.parameters()).device
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))  # alike lengths together
        translations = [""] * len(ids)
        for first in range(0, len(ids), BATCH):
            chosen = order[first : first + BATCH]
            rows, lengths = padded([ids[n] for n in chosen], model.config.pad_token)
            found = translate(
                model,
                rows.to(device),
                lengths.to(device),
                beams=beams,
                length_penalty=length_penalty,
            )
            for n, hypotheses in zip(chosen, found, strict=True):
                best = hypotheses[0].tokens if hypotheses else []
                translations[n] = self.text(best)
        return translations

    def text(self, ids: Sequence[int]) -> str:
        """The sentence of some of the target's tokens."""
        return str((self.target_tokenizer or self.tokenizer).decode(list(ids))).strip()
