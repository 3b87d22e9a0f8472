"""Packing and unpacking padded batches."""

from __future__ import annotations

import pytest
import torch
from compat.helpers import assert_same, integers, normal

from fused_attention.compat.bert_padding import (
    index_first_axis,
    index_put_first_axis,
    pad_input,
    unpad_input,
    unpad_input_for_concatenated_sequences,
)

MASK = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32])
def test_there_and_back(dtype: torch.dtype) -> None:
    x = normal(3, 4, 2, 5).requires_grad_()
    tokens, indices, cu_seqlens, longest, used = unpad_input(x, MASK.to(dtype))
    assert torch.equal(tokens, x[MASK.bool()])
    assert indices.tolist() == [0, 1, 9, 10, 11] and indices.dtype == torch.int64
    assert torch.equal(cu_seqlens, integers(0, 2, 2, 5)) and cu_seqlens.dtype == torch.int32
    assert torch.equal(used, integers(2, 0, 3)) and used.dtype == torch.int32
    assert longest == 3 and type(longest) is int
    padded = pad_input(tokens, indices, 3, 4)
    kept = MASK[..., None, None].double()
    assert torch.equal(padded, x * kept)
    weight = normal(3, 4, 2, 5, seed=1)
    (grad,) = torch.autograd.grad((padded * weight).sum(), x)
    assert torch.equal(grad, weight * kept)


def test_unused_tokens_are_packed_but_not_counted() -> None:
    x = normal(3, 4, 2)
    unused = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    tokens, indices, cu_seqlens, longest, used = unpad_input(x, MASK, unused)
    assert indices.tolist() == [0, 1, 2, 8, 9, 10, 11] and longest == 4
    assert torch.equal(tokens, x.flatten(0, 1)[indices])
    assert torch.equal(cu_seqlens, integers(0, 3, 3, 7))
    assert torch.equal(used, integers(2, 0, 3))


def test_concatenated_sequences() -> None:
    x = normal(2, 6, 3)
    lengths = torch.tensor([[2, 3, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])
    tokens, indices, cu_seqlens, longest = unpad_input_for_concatenated_sequences(x, lengths)
    assert indices.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert torch.equal(cu_seqlens, integers(0, 2, 5, 11)) and longest == 6
    assert torch.equal(tokens, x.flatten(0, 1)[indices])


def test_nothing_but_padding() -> None:
    tokens, indices, cu_seqlens, longest, used = unpad_input(normal(2, 3, 4), torch.zeros(2, 3))
    assert tokens.shape == (0, 4) and longest == 0 and torch.equal(used, integers(0, 0))
    assert torch.equal(pad_input(tokens, indices, 2, 3), torch.zeros(2, 3, 4, dtype=torch.float64))
    assert torch.equal(cu_seqlens, integers(0, 0, 0))


def test_rows_by_their_numbers() -> None:
    x = normal(5, 2, 3).requires_grad_()
    indices = torch.tensor([4, 0, 4])
    rows = index_first_axis(x, indices)
    assert torch.equal(rows, x[indices])
    (grad,) = torch.autograd.grad(rows.sum(), x)
    assert_same(grad[:, 0, 0], torch.tensor([1.0, 0, 0, 0, 2]))
    placed = index_put_first_axis(rows[:2], indices[:2], 6)
    assert torch.equal(placed[[4, 0]], rows[:2]) and not placed[[1, 2, 3, 5]].any()
