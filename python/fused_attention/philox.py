"""Counter-based random numbers and the dropout mask that every backend reproduces bit for bit.

Philox 4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011). The kernels state the same contract in `csrc/include/fused_attention/philox.h` and
`triton_kernels/philox.py`.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Word: TypeAlias = Tensor | int
Words4: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

RANDOM_RANGE = 1 << 16  # one dropout decision takes 16 random bits

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1
_WORD_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> Words4:
    """Philox 4x32-10: four random 32-bit words for a 128-bit counter and a 64-bit key.

    Args:
        counter: four int64 tensors (or ints) of 32-bit words, least significant first; they
            broadcast against each other.
        key: two int64 tensors (or ints) of 32-bit words, least significant first.

    Returns:
        Four int64 tensors of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD_MASK, (k1 + _KEY_STEPS[1]) & _WORD_MASK
    words: Words4 = torch.broadcast_tensors(*map(torch.as_tensor, (c0, c1, c2, c3)))
    return words


def _multiply(a: int, b: Word) -> tuple[Word, Word]:
    """High and low word of a 32 x 32-bit product; int64 wraps around, which keeps all 64 bits."""
    product = a * b
    return (product >> 32) & _WORD_MASK, product & _WORD_MASK


def dropout_threshold(dropout_p: float) -> int:
    """The 16-bit number below which a probability is dropped: round(dropout_p * 65536).

    A dropout_p that rounds to 65536 drops everything; Problem refuses it.
    """
    return round(dropout_p * RANDOM_RANGE)


def dropout_keep_probability(dropout_p: float) -> float:
    """What kept values are divided by: the exact chance to be kept, so the mean is unbiased."""
    return 1.0 - dropout_threshold(dropout_p) / RANDOM_RANGE


def dropout_keep_mask(
    rng_state: Tensor,
    dropout_p: float,
    batch: int,
    heads: int,
    len_q: int,
    len_k: int,
    device: torch.device | str | None = None,
    first_batch: int = 0,
) -> Tensor:
    """Which probabilities survive dropout, as a function of (seed, offset, b, h, i, j) alone.

    The key is the seed. The counter is (chunk, i, b * heads + h, offset) with
    chunk = (j // 32) * 4 + (j // 2) % 4; its word (j // 8) % 4 holds the 16 bits of an even j in
    its low half and those of an odd j in its high half. So one Philox call decides the eight keys
    of 32 that one thread holds in the accumulators of four m16n8 matrix instructions.

    Args:
        rng_state: int64 [2], seed and offset; the offset counts modulo 2**32.
        dropout_p: chance to be dropped, in [0, 1).
        batch: number of batch rows (of a packed batch: sequences).
        heads: number of query heads.
        len_q: number of queries, i counts them (packed: within their sequence).
        len_k: number of keys, j counts them (packed: within their sequence).
        device: of the result; the default is that of rng_state.
        first_batch: b of the first batch row.

    Returns:
        Bool [batch, heads, len_q, len_k], True where kept.
    """
    device = rng_state.device if device is None else torch.device(device)
    seed, offset = rng_state.to(device)
    key = (seed & _WORD_MASK, (seed >> 32) & _WORD_MASK)
    batch_row = torch.arange(first_batch, first_batch + batch, device=device)[:, None]
    row = batch_row * heads + torch.arange(heads, device=device)
    q_row = torch.arange(len_q, device=device)
    chunk = torch.arange((len_k + 31) // 32 * 4, device=device)
    counter = (chunk, q_row[:, None], row[:, :, None, None], offset & _WORD_MASK)
    words = torch.stack(philox4x32(counter, key), dim=-1)

    k_row = torch.arange(len_k, device=device)
    word = words[..., (k_row >> 5) * 4 + ((k_row >> 1) & 3), (k_row >> 3) & 3]
    random_bits = (word >> (16 * (k_row & 1))) & (RANDOM_RANGE - 1)
    return random_bits >= dropout_threshold(dropout_p)
