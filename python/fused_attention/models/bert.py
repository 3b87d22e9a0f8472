"""BERT (Devlin et al. 2019) and ModernBERT (Warner et al. 2024): encoders without padding.

A padded batch is packed once, before the embeddings: every layer works on the tokens that exist,
[total, dim], and only what the caller gets is padded again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_attention.checks import wrong_value
from fused_attention.models.bert_config import BERTConfig
from fused_attention.models.packed_batch import (
    PackedBatch,
    pack_batch,
    rounded_rows,
    with_rows,
)
from fused_attention.models.pretrained import PretrainedModel
from fused_attention.models.tables.bert import bert_table, modernbert_table
from fused_attention.models.token_loss import IGNORED, token_loss
from fused_attention.models.weights import Table
from fused_attention.nn.block import Block
from fused_attention.nn.dropout import dropout
from fused_attention.nn.feed_forward import ACTIVATIONS
from fused_attention.nn.rotary import Rotary, Rotation
from fused_attention.nn.sequences import Sequences


class BERTOutput(NamedTuple):
    """What the model gives; None where it has no such head."""

    hidden: Tensor  # [batch, length, dim], of a packed batch [total, dim]
    pooled: Tensor | None  # [batch, dim], of the first tokens
    mlm_logits: Tensor | None  # [batch, length, vocab_size], packed [total, vocab_size]
    nsp_logits: Tensor | None  # [batch, 2]: is the next sentence, is not


class MLMHead(nn.Module):
    """Logits of the masked tokens: a hidden layer, a norm, products with the embeddings."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.activation = config.head_activation
        self.dense = nn.Linear(config.dim, config.dim, bias=config.head_bias)
        self.norm = nn.LayerNorm(config.dim, config.norm_eps, bias=config.norm_bias)
        self.decoder = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.decoder_bias else None

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """[..., dim] to [..., vocab_size]; `embeddings` are [vocab_size, dim]."""
        x = self.norm(ACTIVATIONS[self.activation](self.dense(hidden)))
        return F.linear(x, embeddings if self.decoder is None else self.decoder.weight, self.bias)


class BERT(PretrainedModel):
    """An encoder with the heads of its pretraining.

    Its checkpoints are those of transformers' and sentence-transformers' BERT and ModernBERT.
    `blocks` are nn.Block, so nn.record_attention_maps shows their weights.

    Raises:
        ValueError: a size in the configuration is out of range.
    """

    config_class = BERTConfig
    config: BERTConfig

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.tokens = nn.Embedding(config.vocab_size, dim)
        self.learned_positions = self.token_types = None
        if config.positions == "learned":
            self.learned_positions = nn.Embedding(config.max_length, dim)
        if config.token_types:
            self.token_types = nn.Embedding(config.token_types, dim)
        self.embedding_norm = nn.LayerNorm(dim, config.norm_eps, bias=config.norm_bias)
        self.blocks = nn.ModuleList(Block(config.block(n)) for n in range(config.layers))
        self.final_norm: nn.Module = nn.Identity()
        if config.norm_first:
            self.final_norm = nn.LayerNorm(dim, config.norm_eps, bias=config.norm_bias)
        self.pooler = nn.Linear(dim, dim) if config.pooler else None
        self.mlm_head = MLMHead(config) if config.mlm_head else None
        self.nsp_head = nn.Linear(dim, 2) if config.nsp_head else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights; biases 0, norms 1.

        With the norm first, what a block adds starts smaller the more blocks there are.
        """
        std, layers = self.config.init_std, self.config.layers
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                adds = name.endswith(("out_proj", "down")) and self.config.norm_first
                one = std / (2 * layers) ** 0.5 if adds else std
                nn.init.normal_(module.weight, std=one)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @classmethod
    def table(cls, config: BERTConfig) -> Table:
        return modernbert_table(config) if config.norm_first else bert_table(config)

    @classmethod
    def adapted(cls, config: BERTConfig, names: Collection[str]) -> BERTConfig:
        """With the heads that the checkpoint has: many hold more than their class's name says."""
        if config.norm_first:
            known = "head.dense.weight" in names and "classifier.weight" not in names
            return _with_heads(config, False, known, False)
        return _with_heads(
            config,
            any(name.endswith("pooler.dense.weight") for name in names),
            "cls.predictions.transform.dense.weight" in names,
            "cls.seq_relationship.weight" in names,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        sequences: Sequences | None = None,
    ) -> BERTOutput:
        """Hidden states and what the heads make of them.

        Args:
            input_ids: integer [batch, length], packed [total].
            attention_mask: [batch, length] as a tokenizer gives it, 0 for padding.
            token_type_ids: like input_ids, the segment of each token; default 0.
            sequences: instead of attention_mask: the lengths of padded rows, or cu_seqlens, for
                input_ids that are packed already.

        Returns:
            A BERTOutput, padded (with zeros) or packed as input_ids are.

        Raises:
            TypeError, ValueError: an argument has a wrong type, shape or value.
        """
        batch = self._packed(input_ids, attention_mask, sequences)
        hidden = self.encode(batch, token_type_ids)
        pooled = self._pooled(hidden, batch)
        logits = None
        if self.mlm_head is not None:
            logits = batch.unpack(self.mlm_head(hidden, self.tokens.weight))
        next_sentence = None if self.nsp_head is None else self.nsp_head(pooled)
        return BERTOutput(batch.unpack(hidden), pooled, logits, next_sentence)

    def encode(self, batch: PackedBatch, token_type_ids: Tensor | None = None) -> Tensor:
        """The hidden states [total, dim] after the last layer; `batch` is from `pack_batch`."""
        x = self.tokens(batch.input_ids)
        if self.learned_positions is not None:
            x = x + self.learned_positions(batch.positions)
        if self.token_types is not None:
            types = None if token_type_ids is None else batch.pack(token_type_ids)
            x = x + (self.token_types.weight[0] if types is None else self.token_types(types))
        elif token_type_ids is not None:
            raise ValueError("token_type_ids: need a model with token_types, got one without")
        x = dropout(self.embedding_norm(x), self.config.embedding_dropout, self.training)
        rotations = self._rotations(batch.positions, x.dtype)
        for layer, block in enumerate(self.blocks):
            rotation = rotations[layer in self.config.local_layers]
            x = block(x, batch.sequences, rotation=rotation)
        hidden: Tensor = self.final_norm(x)
        return hidden

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        sequences: Sequences | None = None,
        pooling: Literal["mean", "first"] = "mean",
        normalize: bool = True,
    ) -> Tensor:
        """One vector for each sequence, as sentence-transformers makes them; never pads.

        Args:
            pooling: the mean of the tokens' hidden states or that of the first token.
            normalize: whether vectors get the length 1.

        The other arguments are those of `forward`.

        Returns:
            [batch, dim]; zeros for an empty sequence.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        if pooling not in ("mean", "first"):
            wrong_value("pooling", "must be mean or first", pooling)
        batch = self._packed(input_ids, attention_mask, sequences)
        hidden = self.encode(batch, token_type_ids)
        vectors = batch.mean(hidden) if pooling == "mean" else batch.first(hidden)
        return F.normalize(vectors, dim=-1) if normalize else vectors

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        lengths: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        sequences: Sequences | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the masked tokens, plus that of the next sentence.

        Args:
            labels: like input_ids, -100 where nothing is to be predicted.
            lengths: integer [batch], the tokens of each padded row.
            next_sentence_label: integer [batch], 0 is the next sentence, 1 is another one.

        The other arguments are those of `forward`.

        Returns:
            A scalar; the logits of other tokens are never computed.

        Raises:
            TypeError, ValueError: as `forward`, or the model lacks a head.
        """
        if self.mlm_head is None:
            raise ValueError("labels: need a model with mlm_head, got one without")
        if lengths is not None:
            sequences = Sequences(lengths=lengths)
        batch = self._packed(input_ids, attention_mask, sequences).filled_up()
        hidden = self.encode(batch, token_type_ids)
        labels = batch.pack(labels, IGNORED)
        masked = (labels != IGNORED).nonzero().squeeze(1)
        # What fills them up is the first token, again and again, with nothing to predict.
        count = rounded_rows(len(masked))
        logits = self.mlm_head(hidden[with_rows(masked, count, 0)], self.tokens.weight)
        loss = token_loss(logits, with_rows(labels[masked].long(), count, IGNORED))
        if next_sentence_label is not None:
            if self.nsp_head is None:
                raise ValueError("next_sentence_label: needs a model with nsp_head, got none")
            scores = self.nsp_head(self._pooled(hidden, batch))
            loss = loss + F.cross_entropy(scores.float(), next_sentence_label)
        return loss

    def _packed(
        self, input_ids: Tensor, attention_mask: Tensor | None, sequences: Sequences | None
    ) -> PackedBatch:
        batch, config = pack_batch(input_ids, attention_mask, sequences), self.config
        longest = batch.sequences.max_length or 0
        if longest > config.max_length and self.learned_positions is not None:
            rule = f"must have at most {config.max_length} tokens, max_length"
            wrong_value("input_ids", rule, longest)
        if attention_mask is not None and config.local_layers:
            _check_no_holes(batch)
        return batch

    def _rotations(self, positions: Tensor, dtype: torch.dtype) -> tuple[Rotation | None, ...]:
        """The angles of global and of local layers."""
        config = self.config
        if config.positions != "rotary":
            return (None, None)
        bases = (config.rotary_base, config.local_rotary_base)
        head_dim = config.dim // config.heads
        return tuple(Rotary(base).rotation(positions, head_dim, dtype) for base in bases)

    def _pooled(self, hidden: Tensor, batch: PackedBatch) -> Tensor | None:
        return None if self.pooler is None else torch.tanh(self.pooler(batch.first(hidden)))


def _with_heads(config: BERTConfig, pooler: bool, mlm_head: bool, nsp_head: bool) -> BERTConfig:
    return replace(config, pooler=pooler, mlm_head=mlm_head, nsp_head=nsp_head)


def _check_no_holes(batch: PackedBatch) -> None:
    """Windows count the tokens that exist, so these must be neighbours in their rows."""
    assert batch.places is not None and batch.shape is not None
    same_row = (batch.places // batch.shape[1]).diff() == 0
    if bool((same_row & (batch.positions.diff() != 1)).any()):
        rule = "must be one run of tokens in each row for a model with local layers"
        wrong_value("attention_mask", rule, "padding between tokens")
