"""Random numbers that depend on what they are for, not on what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*parts: int | str) -> int:
    """A seed of 63 bits for a purpose, such as ("dropout", seed, step, rank)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, seeded with `seed_of(*parts)`."""
    return torch.Generator().manual_seed(seed_of(*parts))
