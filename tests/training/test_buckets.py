"""Which examples make up a batch."""

from __future__ import annotations

import random

import pytest

from fused_attention.training.buckets import LengthBuckets

CHANCE = random.Random(0)
LENGTHS = [CHANCE.randint(1, 30) for _ in range(700)]


def epoch_of(buckets, first):
    """Batches from index `first` on until every example was seen."""
    batches, seen = [], 0
    while seen < len(buckets.lengths):
        batches.append(buckets[first + len(batches)])
        seen += len(batches[-1])
    return batches


@pytest.mark.parametrize("sort", [True, False])
def test_an_epoch_holds_every_example_once(sort):
    buckets = LengthBuckets(LENGTHS, 64, seed=1, sort=sort)
    first = epoch_of(buckets, 0)
    second = epoch_of(buckets, len(first))
    for epoch in (first, second):
        assert sorted(example for batch in epoch for example in batch) == list(range(700))
    assert first != second


@pytest.mark.parametrize("sort", [True, False])
def test_batches_are_full_but_not_too_full(sort):
    buckets = LengthBuckets(LENGTHS, 64, seed=1, sort=sort)
    batches = epoch_of(buckets, 0)

    def size(batch):
        lengths = [LENGTHS[example] for example in batch]
        return max(lengths) * len(lengths) if sort else sum(lengths)

    assert max(map(size, batches)) <= 64
    assert sum(map(size, batches)) > 0.75 * 64 * len(batches)


def test_batches_of_any_lengths_are_all_full_but_the_last():
    batches = LengthBuckets(LENGTHS * 20, 64, seed=1, sort=False)
    sizes = [
        sum(LENGTHS[n % len(LENGTHS)] for n in batches[index])
        for index in range(batches.batches_in_epoch())
    ]
    assert sum(size <= 64 - max(LENGTHS) for size in sizes) <= 1


def test_sorted_batches_have_little_padding():
    batches = epoch_of(LengthBuckets(LENGTHS, 64, seed=1), 0)
    padded = sum(max(LENGTHS[n] for n in batch) * len(batch) for batch in batches)
    assert sum(LENGTHS) > 0.95 * padded


def test_any_index_comes_first():
    """What a resumed run asks for is what the killed one would have got."""
    walked = LengthBuckets(LENGTHS, 64, seed=1)
    wanted = [walked[n] for n in range(500)]
    assert [LengthBuckets(LENGTHS, 64, seed=1)[n] for n in (499, 3, 250)] == [
        wanted[n] for n in (499, 3, 250)
    ]
    assert LengthBuckets(LENGTHS, 64, seed=2)[0] != wanted[0]


def test_a_long_example_is_a_batch_alone():
    buckets = LengthBuckets([100, 1, 1], 10, seed=0)
    assert sorted(map(sorted, epoch_of(buckets, 0))) == [[0], [1, 2]]


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"lengths: must not be empty, got \[\]"):
        LengthBuckets([], 10, 0)
    with pytest.raises(ValueError, match="tokens: must be at least 1, got 0"):
        LengthBuckets([1], 0, 0)
