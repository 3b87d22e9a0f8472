"""Rows behind the last sequence of a packed batch, with which training repeats its shapes."""

from __future__ import annotations

import pytest
import torch

from fused_attention.models import packed_batch
from fused_attention.models.packed_batch import pack_batch, rounded_rows
from fused_attention.models.transformer import Transformer
from fused_attention.models.transformer_config import TransformerConfig
from fused_attention.nn.sequences import Sequences


def test_few_numbers_of_rows() -> None:
    rounded = [rounded_rows(count) for count in range(5000)]
    assert rounded[0] == 0
    assert all(0 <= more - count < max(16, count / 7) for count, more in enumerate(rounded))
    assert len(set(rounded[1024:2048])) <= 9


def test_what_is_packed_is_filled() -> None:
    rows, lengths = torch.arange(1, 9).view(2, 4), torch.tensor([3, 2])
    batch = pack_batch(rows, sequences=Sequences(lengths=lengths)).filled_up()
    zeros = [0] * 11
    assert batch.input_ids.tolist() == [1, 2, 3, 5, 6, *zeros]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, *zeros]
    assert batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.pack(-rows, 7).tolist() == [-1, -2, -3, -5, -6, *[7] * 11]
    whole = pack_batch(rows).filled_up()
    assert whole.pack(rows, 9).tolist() == [*range(1, 9), *[9] * 8]


def test_rows_that_belong_to_no_sequence_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch in training is filled up with them, so that shapes repeat."""
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=64,
        dim=32,
        encoder_layers=2,
        decoder_layers=2,
        heads=4,
        hidden_dim=40,
        dropout=0.0,
    )
    one = Transformer(config).double()
    lengths = torch.tensor([9, 4, 6]), torch.tensor([3, 7, 5])
    batch = torch.randint(3, 64, (3, 9)), torch.randint(3, 64, (3, 7)), *lengths
    shapes: list[int] = []
    one.decoder_norm.register_forward_hook(lambda *call: shapes.append(len(call[-1])))
    results = []
    for step in (16, 1):
        monkeypatch.setattr(packed_batch, "_LEAST_STEP", step)
        one.zero_grad()
        loss = one.loss(*batch)
        loss.backward()
        results.append((loss, [parameter.grad.clone() for parameter in one.parameters()]))
    assert shapes == [16, 12]
    torch.testing.assert_close(*results)
