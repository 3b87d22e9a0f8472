"""Padded and packed batches hold the same tokens, at the same positions."""

from __future__ import annotations

import pytest
import torch

from fused_attention.nn import Sequences, pack, unpack

LENGTHS = torch.tensor([3, 0, 5, 1])


def test_pack_and_unpack() -> None:
    padded = torch.randn(4, 6, 2, requires_grad=True)
    packed = pack(padded, LENGTHS)
    assert torch.equal(packed, torch.cat([row[:n] for row, n in zip(padded, LENGTHS, strict=True)]))
    again = unpack(packed, LENGTHS, 6)
    exists = torch.arange(6) < LENGTHS[:, None]
    assert torch.equal(again, padded * exists[..., None])
    again.sum().backward()
    assert torch.equal(padded.grad[..., 0], exists.float())


def test_positions() -> None:
    packed = Sequences.packed_from(LENGTHS)
    assert packed.packed and packed.max_length == 5
    assert packed.cu_seqlens.tolist() == [0, 3, 3, 8, 9]
    assert packed.cu_seqlens.dtype == torch.int32
    positions = packed.positions(torch.zeros(11, 2))  # two rows that belong to no sequence
    assert positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 0, 1]
    assert Sequences(LENGTHS).positions(torch.zeros(4, 6)).tolist() == list(range(6))
    assert Sequences.packed_from(torch.tensor([], dtype=torch.int64)).max_length == 0


def test_not_both() -> None:
    with pytest.raises(ValueError, match="cu_seqlens: say where packed sequences are, got leng"):
        Sequences(LENGTHS, torch.tensor([0, 1]))
