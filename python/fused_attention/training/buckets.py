"""Which examples make up a batch: those of similar length, in a new order each epoch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch

from fused_attention.checks import wrong_value
from fused_attention.training.seeds import generator

_POOL = 64  # batches' worth of examples that are sorted by length together


class LengthBuckets:
    """Batches of examples as lists of their numbers, endless, the same for the same index.

    An epoch shuffles the examples, sorts pools of them by length, cuts the pools into batches and
    shuffles these: hardly any padding, and no two epochs alike.

    Args:
        lengths: tokens of each example.
        tokens: a batch has at most so many, padding included; a longer example is a batch alone.
        seed: of the order.
        sort: whether a pool is sorted; packed batches have no padding that this would save.

    Raises:
        ValueError: there are no examples, or tokens is below 1.
    """

    def __init__(
        self, lengths: Sequence[int], tokens: int, seed: int, *, sort: bool = True
    ) -> None:
        if not lengths:
            wrong_value("lengths", "must not be empty", lengths)
        if tokens < 1:
            wrong_value("tokens", "must be at least 1", tokens)
        self.lengths, self.tokens, self.seed, self.sort = lengths, tokens, seed, sort
        self._starts = [0]  # index of the first batch of each epoch that was planned so far
        self._epoch, self._plan = -1, list[list[int]]()

    def __getitem__(self, index: int) -> list[int]:
        while index >= self._starts[-1]:
            self._starts.append(self._starts[-1] + len(self._planned(len(self._starts) - 1)))
        epoch = bisect_right(self._starts, index) - 1
        return self._planned(epoch)[index - self._starts[epoch]]

    def batches_in_epoch(self, epoch: int = 0) -> int:
        return len(self._planned(epoch))

    def _planned(self, epoch: int) -> list[list[int]]:
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._make(epoch)
        return self._plan

    def _make(self, epoch: int) -> list[list[int]]:
        random = generator("buckets", self.seed, epoch)
        order = torch.randperm(len(self.lengths), generator=random).tolist()
        if not self.sort:
            return self._cut(order)
        batches: list[list[int]] = []
        pool: list[int] = []
        room = 0
        for example in order:
            pool.append(example)
            room += self.lengths[example]
            if room >= _POOL * self.tokens:
                batches += self._cut(pool)
                pool, room = [], 0
        batches += self._cut(pool)
        shuffled = torch.randperm(len(batches), generator=random).tolist()
        return [batches[n] for n in shuffled]

    def _cut(self, pool: list[int]) -> list[list[int]]:
        if self.sort:
            pool = sorted(pool, key=self.lengths.__getitem__)
        batches: list[list[int]] = []
        longest = total = 0
        for example in pool:
            length = self.lengths[example]
            longest, total = max(longest, length), total + length
            size = longest * (len(batches[-1]) + 1) if self.sort and batches else total
            if not batches or size > self.tokens:
                batches.append([])
                longest = total = length
            batches[-1].append(example)
        return batches
