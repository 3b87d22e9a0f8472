"""The encoder of a recurrent encoder-decoder, and what its decoder begins with."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fused_attention.checks import check_integers, check_tensor, shape_of, wrong_type, wrong_value
from fused_attention.models.seq2seq_config import Seq2SeqConfig
from fused_attention.nn.cho_gru import ChoGRU

Recurrent = nn.LSTM | nn.GRU | ChoGRU


class Encoded(NamedTuple):
    """What an encoder makes of a batch of sources."""

    states: Tensor  # [batch, length, memory_dim], in the order of the sources; 0 is padding
    lengths: Tensor | None  # integer [batch]
    hidden: Tensor  # final states, [layers * directions, batch, encoder_size]
    cell: Tensor | None  # the same of LSTMs' memory cells


class RecurrentState(NamedTuple):
    """The state of a stack of recurrent layers between two steps."""

    hidden: Tensor  # [layers, batch, dim]
    cell: Tensor | None  # the same of LSTMs' memory cells

    def of(self, rows: Tensor) -> RecurrentState:
        """Row n is what row rows[n] was."""
        cell = None if self.cell is None else self.cell.index_select(1, rows)
        return RecurrentState(self.hidden.index_select(1, rows), cell)


def recurrent_layers(
    cell: str, inputs: int, dim: int, layers: int, dropout: float, *, bidirectional: bool = False
) -> Recurrent:
    """torch's LSTM or GRU, or the GRU as it was published."""
    if cell == "cho-gru":
        return ChoGRU(inputs, dim, layers, dropout=dropout, bidirectional=bidirectional)
    kind = nn.LSTM if cell == "lstm" else nn.GRU
    return kind(
        inputs,
        dim,
        layers,
        batch_first=True,
        dropout=dropout if layers > 1 else 0.0,  # torch warns where nothing is dropped
        bidirectional=bidirectional,
    )


class Encoder(nn.Module):
    """LSTMs or GRUs over a source; padding is never embedded nor read."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.dropout, self.reverse = config.dropout, config.reverse_source
        self.rnn = recurrent_layers(
            config.cell,
            config.embedding_dim,
            config.encoder_size,
            config.encoder_layers,
            config.dropout,
            bidirectional=config.bidirectional,
        )

    def forward(self, ids: Tensor, lengths: Tensor | None, embedding: nn.Embedding) -> Encoded:
        """Read the sources.

        Args:
            ids: integer [batch, length].
            lengths: integer [batch], each at least 1; default all.
            embedding: of the source's tokens.

        Raises:
            TypeError, ValueError: an argument has a wrong type, shape or value.
        """
        check_ids("source", ids)
        order = None
        if lengths is not None:
            check_lengths("source_lengths", lengths, ids)
        if self.reverse:
            order = reversed_order(ids, lengths)
            ids = ids.gather(1, order)
        if lengths is None:
            states, final = self.rnn(self._embedded(ids, embedding))
        else:
            packed = pack_padded_sequence(ids, lengths.cpu(), True, enforce_sorted=False)
            embedded = _with_data(packed, self._embedded(packed.data, embedding))
            out, final = self.rnn(embedded)
            states, _ = pad_packed_sequence(out, True, total_length=ids.shape[1])
        if order is not None:
            # The same places again: what was read last stands first once more.
            states = states.gather(1, order[..., None].expand_as(states))
        hidden, cell = final if isinstance(final, tuple) else (final, None)
        return Encoded(states, lengths, hidden, cell)

    def _embedded(self, ids: Tensor, embedding: nn.Embedding) -> Tensor:
        return F.dropout(embedding(ids), self.dropout, self.training)


class Bridge(nn.Module):
    """The decoder's state before its first step.

    Sutskever et al. 2014 and Luong et al. 2015 copy the encoder's final states; the two directions
    of a bidirectional one are put side by side. Bahdanau et al. 2015 (appendix A.2.2) have
    s_0 = tanh(W_s h_1) of the backward direction's state at the first token; W_s has rows for
    every layer here, and for the memory cells of LSTMs.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.layers, self.dim = config.decoder_layers, config.dim
        self.directions, self.has_cell = config.directions, config.cell == "lstm"
        self.linear = None
        if config.bridge_kind == "tanh":
            rows = (2 if self.has_cell else 1) * self.layers * self.dim
            self.linear = nn.Linear(config.encoder_size, rows, bias=False)

    def forward(self, encoded: Encoded) -> RecurrentState:
        if self.linear is None:
            cell = None if encoded.cell is None else self._side_by_side(encoded.cell)
            return RecurrentState(self._side_by_side(encoded.hidden), cell)
        # The last layer's backward direction stands last, and ends at the first token.
        states = torch.tanh(self.linear(encoded.hidden[-1]))
        by_layer = states.unflatten(1, (-1, self.dim)).transpose(0, 1).contiguous()
        cell = by_layer[self.layers :] if self.has_cell else None
        return RecurrentState(by_layer[: self.layers], cell)

    def _side_by_side(self, final: Tensor) -> Tensor:
        """[layers * directions, batch, size] as [layers, batch, directions * size]."""
        by_layer: Tensor = final.unflatten(0, (self.layers, self.directions))
        return by_layer.transpose(1, 2).flatten(2)


def reversed_order(ids: Tensor, lengths: Tensor | None) -> Tensor:
    """Where each token of a row [batch, length] stands after its tokens were reversed.

    Padding stays where it is. Applied twice it changes nothing.
    """
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    if lengths is None:
        return places.flip(1)
    turned = lengths.long()[:, None] - 1 - places
    return torch.where(turned >= 0, turned, places)


def check_ids(argument: str, ids: Tensor) -> None:
    """Token ids [batch, length]."""
    check_tensor(argument, ids)
    if ids.dtype not in (torch.int64, torch.int32):
        wrong_type(argument, "must be int64 or int32", ids.dtype)
    if ids.dim() != 2 or not ids.shape[1]:
        rule = "must be [batch, length] with at least 1 token"
        wrong_value(argument, rule, f"shape {shape_of(ids)}")


def check_lengths(argument: str, lengths: Tensor, ids: Tensor) -> None:
    """Integer [batch]; on the CPU also whether each is in [1, length]."""
    check_integers(argument, lengths, ids.device, len(ids))
    if lengths.device.type == "cpu" and not bool(
        ((lengths >= 1) & (lengths <= ids.shape[1])).all()
    ):
        wrong_value(argument, f"must be in [1, {ids.shape[1]}]", lengths.tolist())


def _with_data(packed: PackedSequence, data: Tensor) -> PackedSequence:
    """The same sequences of other rows."""
    indices = (packed.sorted_indices, packed.unsorted_indices)
    return PackedSequence(data, packed.batch_sizes, *indices)
