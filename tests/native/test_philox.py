"""philox.h against published vectors and against the Python reference, bit for bit."""

from __future__ import annotations

import torch

from fused_attention.reference import dropout_keep_mask, dropout_threshold, philox4x32
from native.build import native_module

# Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, result.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def test_philox_gives_the_published_words():
    for counter, key, words in KNOWN_ANSWERS:
        assert native_module().philox4x32(counter, key) == words


def test_philox_equals_the_reference_on_random_counters():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 1 << 32, (6, 500), generator=generator)
    words = torch.stack(philox4x32(tuple(numbers[:4]), tuple(numbers[4:])), dim=1)
    for row, expected in zip(numbers.T.tolist(), words.tolist(), strict=True):
        assert list(native_module().philox4x32(tuple(row[:4]), tuple(row[4:]))) == expected


def test_dropout_keeps_the_same_pairs_as_the_reference():
    seed, offset, dropout_p = 0x1234_5678_9ABC_DEF0, 0xFFFF_FFFF, 0.3
    batch, heads, len_q, len_k = 2, 3, 5, 71
    mask = dropout_keep_mask(
        torch.tensor([seed, offset]), dropout_p, batch, heads, len_q, len_k, "cpu"
    )
    threshold = dropout_threshold(dropout_p)
    for b, h, i, j in torch.cartesian_prod(*map(torch.arange, mask.shape)).tolist():
        kept = native_module().dropout_keep(seed, offset, threshold, b * heads + h, i, j)
        assert kept == mask[b, h, i, j], (b, h, i, j)
