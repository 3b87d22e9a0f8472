"""Batches of sentence pairs for an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence

from fused_attention.training.batch import Batch
from fused_attention.training.buckets import LengthBuckets
from fused_attention.training.padding import padded

Pair = tuple[Sequence[int], Sequence[int]]


class SentencePairs:
    """Batches of pairs, padded on the right.

    Args:
        pairs: ids of source and target; the target begins with its first special token and both
            end with their last.
        tokens: that the encoder or the decoder is given in a batch, at most, padding included.
        pad_id: what rows are filled up with.
        seed: of the order.
        packed: the model leaves padding out. Then it does not count, and lengths are mixed; else
            pairs of similar length come together.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        tokens: int,
        pad_id: int,
        seed: int,
        *,
        packed: bool = False,
    ) -> None:
        self.pairs, self.pad_id = pairs, pad_id
        lengths = [max(len(source), len(target) - 1) for source, target in pairs]
        self.buckets = LengthBuckets(lengths, tokens, seed, sort=not packed)

    def __getitem__(self, index: int) -> Batch:
        return pair_batch([self.pairs[n] for n in self.buckets[index]], self.pad_id)


def pair_batch(pairs: Sequence[Pair], pad_id: int) -> Batch:
    """One batch of pairs; all tokens of the target but its first are predicted."""
    source, source_lengths = padded([source for source, _ in pairs], pad_id)
    target, target_lengths = padded([target for _, target in pairs], pad_id)
    inputs = {
        "source": source,
        "target": target,
        "source_lengths": source_lengths,
        "target_lengths": target_lengths,
    }
    return Batch(inputs, int(target_lengths.sum()) - len(pairs))
