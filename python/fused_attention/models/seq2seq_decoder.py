"""The decoder of a recurrent encoder-decoder: with which state it asks, and what it feeds back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fused_attention.models.seq2seq_config import Seq2SeqConfig
from fused_attention.models.seq2seq_encoder import (
    Bridge,
    Encoded,
    RecurrentState,
    recurrent_layers,
)
from fused_attention.nn.annotations import Annotations
from fused_attention.nn.bahdanau_attention import BahdanauAttention
from fused_attention.nn.luong_attention import LuongAttention


class DecoderState(NamedTuple):
    """What a decoder carries from step to step."""

    recurrent: RecurrentState
    fed: Tensor | None  # [batch, 1, dim], the attentional vector that the next step also gets
    step: int  # number of the next step

    def of(self, rows: Tensor) -> DecoderState:
        """Row n is what row rows[n] was."""
        fed = None if self.fed is None else self.fed.index_select(0, rows)
        return DecoderState(self.recurrent.of(rows), fed, self.step)


class Decoded(NamedTuple):
    """What some steps of a decoder gave."""

    features: Tensor  # [batch, steps, feature_dim], of which the logits are made
    queries: Tensor  # [batch, steps, dim], the states that asked the attention
    state: DecoderState


class Decoder(nn.Module):
    """LSTMs or GRUs over a target, with one of the attentions or none.

    - none: the logits are made of the state h_t.
    - bahdanau: the last layer's state *before* the step asks; the context joins the step's input,
      and state, context and input are what the logits are made of.
    - luong-*, local-*: the last layer's state *after* the step asks, and the logits are made of
      the attentional vector. Nothing of that goes back into the recurrence, so all steps ask in
      one call, unless with input feeding.
    """

    attention: BahdanauAttention | LuongAttention | None

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        kind, dim, memory_dim = config.attention, config.dim, config.memory_dim
        self.input_feeding = config.input_feeding
        self.feature_dim, inputs = dim, config.embedding_dim
        self.attention = None
        if kind == "bahdanau":
            self.attention = BahdanauAttention(
                dim, memory_dim, config.attention_dim, normed=config.normed
            )
            inputs += memory_dim
            self.feature_dim += inputs
        elif kind != "none":
            self.attention = LuongAttention(
                dim,
                memory_dim,
                config.score,
                window=config.window,
                width=config.width,
                sigma=config.sigma,
                last_place=config.last_place,
                dim=config.attention_dim,
                max_length=config.location_length,
            )
            inputs += dim if config.input_feeding else 0
        self.bridge = Bridge(config)
        layers = config.decoder_layers
        self.rnn = recurrent_layers(config.cell, inputs, dim, layers, config.dropout)

    def start(self, encoded: Encoded) -> DecoderState:
        """The state before the first step."""
        recurrent = self.bridge(encoded)
        fed = torch.zeros_like(recurrent.hidden[-1])[:, None] if self.input_feeding else None
        return DecoderState(recurrent, fed, 0)

    def remember(self, encoded: Encoded) -> Annotations | None:
        """What the attention needs of the sources, for all steps."""
        if self.attention is None:
            return None
        return self.attention.remember(encoded.states, encoded.lengths)

    def forward(self, y: Tensor, state: DecoderState, annotations: Annotations | None) -> Decoded:
        """Some steps.

        Args:
            y: embedded target tokens [batch, steps, embedding_dim], those before the predicted.
            state: from `start` or from the steps before.
            annotations: from `remember`.
        """
        if isinstance(self.attention, BahdanauAttention):
            return self._ask_before_each_step(self.attention, y, state, annotations)
        if self.input_feeding:
            return self._feed_each_step(y, state, annotations)
        return self._ask_after_all_steps(y, state, annotations)

    def weights(self, decoded: Decoded, annotations: Annotations, first_step: int = 0) -> Tensor:
        """The attention weights [batch, steps, source length] of these steps.

        Raises:
            RuntimeError: there is no attention.
        """
        if self.attention is None:
            raise RuntimeError("attention: must be there to have weights, got none")
        if isinstance(self.attention, BahdanauAttention):
            return self.attention.weights(decoded.queries, annotations)
        return self.attention.weights(decoded.queries, annotations, first_step)

    def _ask_after_all_steps(
        self, y: Tensor, state: DecoderState, annotations: Annotations | None
    ) -> Decoded:
        queries, recurrent = self._recur(y, state.recurrent)
        features = self._vectors(queries, annotations, state.step)
        return Decoded(features, queries, DecoderState(recurrent, None, state.step + y.shape[1]))

    def _feed_each_step(
        self, y: Tensor, state: DecoderState, annotations: Annotations | None
    ) -> Decoded:
        recurrent, fed, first = state
        vectors, queries = list[Tensor](), list[Tensor]()
        for n, token in enumerate(y.split(1, 1)):
            assert fed is not None
            query, recurrent = self._recur(torch.cat((token, fed), -1), recurrent)
            fed = self._vectors(query, annotations, first + n)
            vectors.append(fed)
            queries.append(query)
        after = DecoderState(recurrent, fed, first + y.shape[1])
        return Decoded(torch.cat(vectors, 1), torch.cat(queries, 1), after)

    def _ask_before_each_step(
        self,
        attention: BahdanauAttention,
        y: Tensor,
        state: DecoderState,
        annotations: Annotations | None,
    ) -> Decoded:
        assert annotations is not None
        recurrent, states, contexts, queries = state.recurrent, *(list[Tensor]() for _ in "123")
        for token in y.split(1, 1):
            query = recurrent.hidden[-1][:, None]
            context = attention(query, annotations)
            one, recurrent = self._recur(torch.cat((token, context), -1), recurrent)
            queries.append(query)
            contexts.append(context)
            states.append(one)
        # The logits' side of it waits until all steps are there: one product instead of many.
        features = torch.cat((torch.cat(states, 1), torch.cat(contexts, 1), y), -1)
        after = DecoderState(recurrent, None, state.step + y.shape[1])
        return Decoded(features, torch.cat(queries, 1), after)

    def _vectors(self, queries: Tensor, annotations: Annotations | None, first_step: int) -> Tensor:
        if annotations is None or self.attention is None:
            return queries
        vectors: Tensor = self.attention(queries, annotations, first_step)
        return vectors

    def _recur(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """[batch, steps, inputs] to the last layer's states [batch, steps, dim]."""
        if state.cell is None:
            out, hidden = self.rnn(x, state.hidden)
            return out, RecurrentState(hidden, None)
        out, (hidden, cell) = self.rnn(x, (state.hidden, state.cell))
        return out, RecurrentState(hidden, cell)
