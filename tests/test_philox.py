"""Philox against its published vectors, and the dropout mask's bits and statistics."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fused_attention.philox import (
    dropout_keep_mask,
    dropout_keep_probability,
    dropout_threshold,
    philox4x32,
)

Words = tuple[int, ...]
ONES = 0xFFFFFFFF
MAX_SEED = 2**63 - 1

# Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, result.
# The last one's input is the digits of pi.
KNOWN_ANSWERS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.fixture(params=["ints", "tensors", "native"])
def generate(request: pytest.FixtureRequest) -> Callable[[Words, Words], Words]:
    """philox4x32 from tuples of ints to a tuple of ints."""
    if request.param == "native":
        from native.build import native_module

        generate_native: Callable[[Words, Words], Words] = native_module().philox4x32
        return generate_native

    def generate(counter: Words, key: Words) -> Words:
        def convert(words: Words) -> Any:
            return words if request.param == "ints" else tuple(map(torch.tensor, words))

        return tuple(int(word) for word in philox4x32(convert(counter), convert(key)))

    return generate


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(
    generate: Callable[[Words, Words], Words], counter: Words, key: Words, words: Words
) -> None:
    assert generate(counter, key) == words


def test_words_broadcast() -> None:
    counter = (torch.arange(3), torch.arange(2)[:, None], 7, 8)
    words = philox4x32(counter, (torch.tensor(5), 6))
    assert all(word.shape == (2, 3) and word.dtype == torch.int64 for word in words)
    single = philox4x32((torch.tensor(2), 1, 7, 8), (5, 6))
    assert [int(word[1, 2]) for word in words] == [int(word) for word in single]


@pytest.mark.parametrize(
    ("dropout_p", "threshold"),
    [(0.0, 0), (0.5, 32768), (0.1, 6554), (0.5 / 65536, 0), (1.5 / 65536, 2), (2.5 / 65536, 2)],
)
def test_threshold_rounds_half_to_even(dropout_p: float, threshold: int) -> None:
    assert dropout_threshold(dropout_p) == threshold
    assert dropout_keep_probability(dropout_p) == (65536 - threshold) / 65536


def random_bits(seed: int, offset: int, batch: int, heads: int, at: tuple[int, ...]) -> int:
    """The 16 bits that decide about (b, h, i, j), found by bisection over thresholds."""
    rng_state = torch.tensor([seed, offset])
    low, high = 0, 65536
    while high - low > 1:
        middle = (low + high) // 2
        keep = dropout_keep_mask(rng_state, middle / 65536, batch, heads, at[2] + 1, at[3] + 1)
        low, high = (middle, high) if keep[at] else (low, middle)
    return low


def test_bits_of_the_first_call_are_the_published_words() -> None:
    """Keys 0, 1 take the halves of word 0, keys 8, 9 of word 1 and so on; low half first."""
    expected = [0xE8D5, 0x6627, 0xC58D, 0xE169, 0xAC4C, 0xBC57, 0xDBD8, 0x9B00]
    keys = [0, 1, 8, 9, 16, 17, 24, 25]
    assert [random_bits(0, 0, 1, 1, (0, 0, 0, j)) for j in keys] == expected


@pytest.mark.parametrize(
    ("j", "chunk", "word", "half"),
    [(2, 1, 0, 0), (7, 3, 0, 1), (12, 2, 1, 0), (31, 3, 3, 1), (32, 4, 0, 0), (45, 6, 1, 1)],
)
def test_counter_holds_the_position(j: int, chunk: int, word: int, half: int) -> None:
    b, h, i, heads = 1, 2, 4, 3
    words = philox4x32((torch.tensor(chunk), i, b * heads + h, 9), (7, 5))
    expected = (int(words[word]) >> (16 * half)) & 0xFFFF
    assert random_bits((5 << 32) + 7, 9, 2, heads, (b, h, i, j)) == expected


def test_negative_seeds_and_large_offsets_wrap() -> None:
    words = philox4x32((torch.tensor(0), 0, 0, 3), (ONES, ONES))
    assert random_bits(-1, 3, 1, 1, (0, 0, 0, 0)) == int(words[0]) & 0xFFFF
    assert random_bits(-1, (1 << 32) + 3, 1, 1, (0, 0, 0, 0)) == int(words[0]) & 0xFFFF


def test_literal_bits() -> None:
    """So that no rewrite of the contract goes unseen, even if every backend follows it."""
    keep = dropout_keep_mask(torch.tensor([0x1234_5678_9ABC, 5]), 0.5, 2, 2, 3, 40)
    places = ((0, 0, 0), (0, 1, 2), (1, 1, 1))
    assert ["".join("01"[bit] for bit in keep[place].int().tolist()) for place in places] == [
        "0110101010110000011100000001001010111011",
        "0011000000000111010101110110000011101011",
        "0101011001111011000110010100110100010000",
    ]


def test_native_decides_alike() -> None:
    from native.build import native_module

    native, draw = native_module(), random.Random(0)
    for dropout_p in (0.1, 0.5, 0.9):
        seed, offset = draw.randrange(-MAX_SEED, MAX_SEED), draw.randrange(1 << 32)
        keep = dropout_keep_mask(torch.tensor([seed, offset]), dropout_p, 2, 3, 9, 100)
        for _ in range(500):
            b, h, i, j = (draw.randrange(size) for size in keep.shape)
            decided = native.dropout_keep(
                seed, offset, dropout_threshold(dropout_p), b * 3 + h, i, j
            )
            assert decided == keep[b, h, i, j].item(), (seed, offset, b, h, i, j)


def test_mask_depends_on_the_position_alone() -> None:
    """Not on the lengths, nor on which rows of a batch are asked for."""
    rng_state = torch.tensor([11, 12])
    keep = dropout_keep_mask(rng_state, 0.4, 4, 3, 20, 70)
    assert torch.equal(dropout_keep_mask(rng_state, 0.4, 2, 3, 7, 33), keep[:2, :, :7, :33])
    part = dropout_keep_mask(rng_state, 0.4, 2, 3, 20, 70, first_batch=2)
    assert torch.equal(part, keep[2:])
    regrouped = dropout_keep_mask(rng_state, 0.4, 2, 6, 20, 70)  # the same b * heads + h
    assert torch.equal(regrouped.flatten(0, 1), keep.flatten(0, 1))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty_masks(shape: tuple[int, int, int, int]) -> None:
    assert dropout_keep_mask(torch.tensor([1, 2]), 0.5, *shape).shape == shape


BIG = (4, 4, 128, 256)


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_rate(dropout_p: float) -> None:
    keep = dropout_keep_mask(torch.tensor([MAX_SEED, 0]), dropout_p, *BIG).double()
    sigma = (dropout_p * (1 - dropout_p) / keep.numel()) ** 0.5
    assert abs(keep.mean().item() - dropout_keep_probability(dropout_p)) < 4 * sigma
    for dim in range(4):
        others = [d for d in range(4) if d != dim]
        means = keep.mean(dim=others)
        deviation = (means - means.mean()).abs().max().item()
        assert deviation < 5 * sigma * keep.shape[dim] ** 0.5, f"dimension {dim}"


@pytest.mark.parametrize("dim", range(4))
@pytest.mark.parametrize("distance", [1, 2, 3])
def test_neighbours_are_independent(dim: int, distance: int) -> None:
    keep = dropout_keep_mask(torch.tensor([3, 4]), 0.5, *BIG)
    count = keep.shape[dim] - distance
    assert_independent(keep.narrow(dim, 0, count), keep.narrow(dim, distance, count))


@pytest.mark.parametrize("distance", [4, 7, 8, 16, 32, 64])
def test_keys_of_other_words_and_chunks_are_independent(distance: int) -> None:
    keep = dropout_keep_mask(torch.tensor([3, 4]), 0.5, *BIG)
    assert_independent(keep[..., distance:], keep[..., :-distance])


@pytest.mark.parametrize("other", [(4, 4), (3, 5), (3 + (1 << 32), 4), (-3, 4)])
def test_seeds_and_offsets_are_independent(other: tuple[int, int]) -> None:
    one, two = (dropout_keep_mask(torch.tensor(state), 0.5, *BIG) for state in ((3, 4), other))
    assert_independent(one, two)


def assert_independent(one: torch.Tensor, two: torch.Tensor) -> None:
    """Fair bits agree in half of the places, up to 4.5 standard deviations."""
    agreement = (one == two).double().mean().item()
    assert abs(agreement - 0.5) < 4.5 * 0.5 / one.numel() ** 0.5
