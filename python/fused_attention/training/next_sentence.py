"""Batches for BERT's two tasks at once: masked tokens, and whether one text follows another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fused_attention.checks import wrong_value
from fused_attention.models.bert import BERT
from fused_attention.models.token_loss import IGNORED
from fused_attention.training.batch import Batch
from fused_attention.training.buckets import LengthBuckets
from fused_attention.training.corpora import DataError
from fused_attention.training.masked import mask_tokens
from fused_attention.training.padding import padded
from fused_attention.training.seeds import generator

IS_NEXT, IS_ANOTHER = 0, 1
_SPECIAL = 3  # begin, end of A, end of B
_DRAWS = 50  # of a random B that fits behind A; the last one is cut, which hardly ever happens


class Pair(NamedTuple):
    """Two texts, and whether the second one follows the first."""

    first: list[int]
    second: list[int]
    label: int


class NextSentences:
    """Batches of pairs of texts A and B, 50 % of them neighbours (Devlin et al. 2019, section 3.1).

    A and B are whole lines: A has about half of the tokens at most, B as many lines after A, or
    from a random place elsewhere, as fit. Both kinds of B thus have the same lengths and ends,
    which tell nothing. Splits, places and masks are drawn anew in each epoch. A batch's loss is the
    sum of two means, one over its masked tokens and one over its pairs; its weight is the number
    of the former.

    Args:
        lines: the ids of each line, in the order of the text; long ones are cut in pieces.
        limit: tokens of a pair at most, its three special ones included.
        tokens: in a batch, at most, without padding.
        frame: ids of what stands before A, and of what stands after A and B.
        pad_id: what rows are filled up with.
        mask_id, first_id, vocab_size: as in `mask_tokens`.
        seed: of all that is random.

    Raises:
        ValueError: limit is below 5.
        DataError: the lines do not fill more than one pair.
    """

    def __init__(
        self,
        lines: Sequence[Sequence[int]],
        limit: int,
        tokens: int,
        *,
        frame: tuple[int, int],
        pad_id: int,
        mask_id: int,
        first_id: int,
        vocab_size: int,
        seed: int,
    ) -> None:
        self.room = limit - _SPECIAL
        if self.room < 2:
            wrong_value("context", f"must be at least {_SPECIAL + 2} for pairs of texts", limit)
        self.frame, self.pad_id, self.seed = frame, pad_id, seed
        self.ids = (mask_id, first_id, vocab_size)
        half = self.room // 2  # so that two pieces always fit
        self.lines = [
            list(line[first : first + half])
            for line in lines
            for first in range(0, len(line), half)
        ]
        self.passages = self._passages()
        if len(self.passages) < 2:
            raise DataError("data: must hold text for two pairs in each of its parts, got less")
        self.buckets = LengthBuckets([limit] * len(self.passages), tokens, seed, sort=False)

    def __getitem__(self, index: int) -> Batch:
        random = generator("next sentence", self.seed, index)
        pairs = [self._pair(self.passages[n], random) for n in self.buckets[index]]
        begin, end = self.frame
        tokens, lengths = padded(
            [[begin, *pair.first, end, *pair.second, end] for pair in pairs], self.pad_id
        )
        seconds = torch.tensor([len(pair.first) + 2 for pair in pairs])
        types = torch.arange(tokens.shape[1]) >= seconds.unsqueeze(1)
        masked, labels = mask_tokens(tokens, *self.ids, random)
        inputs = {
            "input_ids": masked,
            "labels": labels,
            "lengths": lengths,
            "token_type_ids": types.long(),
            "next_sentence_label": torch.tensor([pair.label for pair in pairs]),
        }
        return Batch(inputs, int((labels != IGNORED).sum()))

    def _passages(self) -> list[range]:
        """Neighbouring lines, as many as fit, at least two."""
        passages, first = list[range](), 0
        while first < len(self.lines):
            last = first + len(self._that_fit(first, self.room))
            if last - first >= 2:
                passages.append(range(first, last))
            first = last
        return passages

    def _that_fit(self, first: int, room: int) -> list[list[int]]:
        """The lines from number `first` on that have so many tokens together at most."""
        found: list[list[int]] = []
        for line in self.lines[first : first + room]:
            room -= len(line)
            if room < 0:
                break
            found.append(line)
        return found

    def _pair(self, passage: range, random: torch.Generator) -> Pair:
        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=random))

        # Where A ends must not depend on what follows it, or the lengths would tell who follows.
        wanted, split = 1 + draw(self.room // 2), passage.start
        while wanted > 0 and split < passage.stop - 1:
            wanted -= len(self.lines[split])
            split += 1
        first = [token for line in self.lines[passage.start : split] for token in line]
        label, start, room = IS_NEXT, split, self.room - len(first)
        if draw(2):
            label = IS_ANOTHER
            for _ in range(_DRAWS):
                start = draw(len(self.lines) - len(passage))
                start += len(passage) if start >= passage.start else 0
                if len(self.lines[start]) <= room:
                    break
        lines = self._that_fit(start, room) or [self.lines[start][:room]]
        return Pair(first, [token for line in lines for token in line], label)


@torch.no_grad()
def next_sentence_accuracy(model: BERT, batches: Sequence[Batch]) -> float:
    """The share of pairs in which the model is right about what follows what."""
    right = pairs = 0
    device = next(model.parameters()).device
    for batch in batches:
        inputs = batch.to(device).inputs
        mask = torch.arange(inputs["input_ids"].shape[1], device=device)
        mask = mask < inputs["lengths"].unsqueeze(1)
        scores = model(inputs["input_ids"], mask, inputs["token_type_ids"]).nsp_logits
        assert scores is not None
        right += int((scores.argmax(1) == inputs["next_sentence_label"]).sum())
        pairs += len(scores)
    return right / max(pairs, 1)
