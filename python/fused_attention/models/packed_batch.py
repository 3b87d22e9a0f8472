"""A batch of token ids without its padding, whichever way the caller says where that is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention.checks import check_tensor, shape_of, wrong_type, wrong_value
from fused_attention.nn.sequences import Sequences

_LEAST_STEP = 16  # rows


class PackedBatch(NamedTuple):
    """The tokens that exist, one sequence after the other."""

    input_ids: Tensor  # [total], after `filled_up` with rows behind the last sequence
    positions: Tensor  # [total], each token's place in its row
    sequences: Sequences
    cu_seqlens: Tensor  # int32 [batch + 1], those of `sequences`
    shape: tuple[int, int] | None  # (batch, length) of the caller's rows; None: they came packed
    places: Tensor | None  # int64 [tokens], of them in the flattened rows; None is all

    def pack(self, rows: Tensor, fill: int = 0) -> Tensor:
        """[batch, length, ...] as [total, ...]; what came packed stays as it is.

        `fill` is for rows behind the last sequence.
        """
        flat = rows if self.shape is None else rows.flatten(0, 1)
        if self.places is not None:
            flat = flat.index_select(0, self.places)
        return with_rows(flat, len(self.input_ids), fill)

    def unpack(self, x: Tensor) -> Tensor:
        """[total, ...] as the caller's rows, zeros for their padding; differentiable."""
        if self.shape is None:
            return x
        if self.places is not None:
            batch, length = self.shape
            rows = x.new_zeros(batch * length, *x.shape[1:])
            x = rows.index_copy(0, self.places, x)
        unpacked: Tensor = x.unflatten(0, self.shape)
        return unpacked

    def filled_up(self) -> PackedBatch:
        """With rows that belong to no sequence, so that batches of like sizes have one shape.

        No sequence sees them, so they change no result and have no gradient. Matrix products in
        low precision, compiled models and caching allocators prepare themselves for each shape
        that they meet, which takes oneDNN longer than a small product itself.
        """
        total = rounded_rows(len(self.input_ids))
        ids, positions = (with_rows(x, total, 0) for x in (self.input_ids, self.positions))
        return self._replace(input_ids=ids, positions=positions)

    def first(self, x: Tensor) -> Tensor:
        """The first token's row of each sequence, [batch, ...]; zeros for an empty one."""
        starts, exists = self.cu_seqlens[:-1], self.cu_seqlens.diff() > 0
        if not len(x):
            return x.new_zeros(len(starts), *x.shape[1:])
        rows = x.index_select(0, starts.clamp(max=len(x) - 1))
        return torch.where(exists.view(-1, *[1] * (x.dim() - 1)), rows, 0)

    def mean(self, x: Tensor) -> Tensor:
        """The mean over each sequence's rows of `x` [total, dim]: [batch, dim], 0 if empty."""
        counts = self.cu_seqlens.diff().long()
        wide = x if x.dtype == torch.float64 else x.float()
        sums = torch.segment_reduce(wide, "sum", lengths=counts, unsafe=True)
        return (sums / counts.clamp(min=1)[:, None]).to(x.dtype)


def rounded_rows(count: int) -> int:
    """A number of rows of at least `count`: one of eight between each power of two and the next."""
    step = max(_LEAST_STEP, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


def with_rows(x: Tensor, count: int, fill: int) -> Tensor:
    """`x` with `count` rows, those behind its own filled."""
    return x if len(x) == count else torch.cat((x, x.new_full((count - len(x),), fill)))


def pack_batch(
    input_ids: Any, attention_mask: Any = None, sequences: Sequences | None = None
) -> PackedBatch:
    """Leave the padding out.

    Args:
        input_ids: integer [batch, length]; packed [total], with sequences that are packed.
        attention_mask: [batch, length], 0 for padding, anywhere in a row.
        sequences: instead of attention_mask, the lengths of the rows or cu_seqlens.

    Raises:
        TypeError, ValueError: an argument has a wrong type or shape, or both masks are given.
    """
    check_tensor("input_ids", input_ids)
    if input_ids.dtype not in (torch.int64, torch.int32):
        wrong_type("input_ids", "must be int64 or int32", input_ids.dtype)
    if attention_mask is not None and sequences is not None:
        wrong_value("sequences", "must not be given beside attention_mask", sequences)
    if sequences is not None and sequences.cu_seqlens is not None:
        return _came_packed(input_ids, sequences, sequences.cu_seqlens)
    if input_ids.dim() != 2:
        wrong_value("input_ids", "must be [batch, length]", f"shape {shape_of(input_ids)}")
    batch, length = input_ids.shape
    columns = torch.arange(length, device=input_ids.device)
    if sequences is not None and sequences.lengths is not None:
        lengths = sequences.lengths
        if shape_of(lengths) != (batch,):
            wrong_value("lengths", f"must have shape [{batch}]", f"shape {shape_of(lengths)}")
        attention_mask = columns < lengths.to(input_ids.device)[:, None]
    if attention_mask is None:
        ends = torch.arange(batch + 1, device=input_ids.device, dtype=torch.int32) * length
        packed = Sequences(cu_seqlens=ends, max_length=length)
        positions = columns.expand(batch, length).flatten()
        return PackedBatch(input_ids.flatten(), positions, packed, ends, (batch, length), None)
    check_tensor("attention_mask", attention_mask)
    if shape_of(attention_mask) != (batch, length):
        rule = f"must have input_ids' shape [{batch}, {length}]"
        wrong_value("attention_mask", rule, f"shape {shape_of(attention_mask)}")
    exists = attention_mask != 0
    packed = Sequences.packed_from(exists.sum(1))
    assert packed.cu_seqlens is not None
    places = exists.flatten().nonzero().squeeze(1)
    ids = input_ids.flatten().index_select(0, places)
    return PackedBatch(ids, places % length, packed, packed.cu_seqlens, (batch, length), places)


def _came_packed(input_ids: Tensor, sequences: Sequences, cu_seqlens: Tensor) -> PackedBatch:
    if input_ids.dim() != 1:
        rule = "must be packed, [total], as sequences are"
        wrong_value("input_ids", rule, f"shape {shape_of(input_ids)}")
    if int(cu_seqlens[-1]) != len(input_ids):
        wrong_value("cu_seqlens", f"must end at total {len(input_ids)}", int(cu_seqlens[-1]))
    longest = sequences.max_length
    if longest is None:
        longest = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
        sequences = Sequences(cu_seqlens=cu_seqlens, max_length=longest)
    positions = sequences.positions(input_ids)
    return PackedBatch(input_ids, positions, sequences, cu_seqlens, None, None)
