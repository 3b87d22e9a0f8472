"""Batches for BERT: masked tokens to restore."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_attention.models.token_loss import IGNORED
from fused_attention.training.batch import Batch
from fused_attention.training.buckets import LengthBuckets
from fused_attention.training.padding import padded
from fused_attention.training.seeds import generator

MASKED_SHARE, TO_MASK, TO_RANDOM = 0.15, 0.8, 0.1


def mask_tokens(
    tokens: Tensor, mask_id: int, first_id: int, vocab_size: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """BERT's masking (Devlin et al. 2019, appendix A.1).

    15 % of the ordinary tokens are predicted, one at the least if there is one; of these 80 %
    become the mask, 10 % a random token and 10 % stay.

    Args:
        tokens: int64 of any shape.
        mask_id: the mask's id.
        first_id: ids below it are special: never masked, never drawn.
        vocab_size: ids end before it.
        random: what to draw with, on the CPU.

    Returns:
        The tokens with masks in them, and the labels: IGNORED where nothing is predicted.
    """
    draw = torch.rand(tokens.shape, generator=random)
    draw = draw.masked_fill(tokens < first_id, torch.inf)
    chosen = draw < MASKED_SHARE
    if tokens.numel() and not chosen.any():
        chosen = (draw == draw.min()) & (tokens >= first_id)
    labels = tokens.masked_fill(~chosen, IGNORED)
    change = torch.rand(tokens.shape, generator=random)
    others = torch.randint(first_id, vocab_size, tokens.shape, generator=random)
    masked = torch.where(chosen & (change < TO_MASK), mask_id, tokens)
    drawn = chosen & (change >= TO_MASK) & (change < TO_MASK + TO_RANDOM)
    return torch.where(drawn, others, masked), labels


class MaskedSentences:
    """Batches of sentences, padded on the right; BERT packs them before its first layer.

    Args:
        sentences: the ids of each, special tokens included.
        tokens: in a batch, at most, without padding; a longer sentence is a batch alone.
        pad_id: what rows are filled up with.
        mask_id, first_id, vocab_size: as in `mask_tokens`.
        seed: of order and masks.
    """

    def __init__(
        self,
        sentences: Sequence[Sequence[int]],
        tokens: int,
        *,
        pad_id: int,
        mask_id: int,
        first_id: int,
        vocab_size: int,
        seed: int,
    ) -> None:
        self.sentences, self.pad_id, self.seed = sentences, pad_id, seed
        self.ids = (mask_id, first_id, vocab_size)
        lengths = [len(sentence) for sentence in sentences]
        self.buckets = LengthBuckets(lengths, tokens, seed, sort=False)

    def __getitem__(self, index: int) -> Batch:
        chosen = [self.sentences[n] for n in self.buckets[index]]
        tokens, lengths = padded(chosen, self.pad_id)
        random = generator("masks", self.seed, index)
        masked, labels = mask_tokens(tokens, *self.ids, random)
        inputs = {"input_ids": masked, "labels": labels, "lengths": lengths}
        return Batch(inputs, int((labels != IGNORED).sum()))
