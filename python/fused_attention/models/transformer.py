"""The Transformer (Vaswani et al. 2017): an encoder, and a decoder that looks at it.

Training works on packed batches: padding is left out before the embeddings, and the logits of
padding are never computed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_attention.models.packed_batch import PackedBatch, pack_batch
from fused_attention.models.pretrained import PretrainedModel
from fused_attention.models.tables.transformer import marian_table, torch_table
from fused_attention.models.token_loss import IGNORED, token_loss
from fused_attention.models.transformer_config import TransformerConfig
from fused_attention.models.weights import Table, from_checkpoint, to_checkpoint
from fused_attention.nn.attention import WHOLE, Memory
from fused_attention.nn.block import Block
from fused_attention.nn.dropout import dropout
from fused_attention.nn.kv_cache import Cache
from fused_attention.nn.positions import SinusoidalPositions
from fused_attention.nn.sequences import Sequences


class Transformer(PretrainedModel):
    """An encoder-decoder with sinusoidal positions, post-LN or pre-LN.

    Its checkpoints are those of transformers' Marian and Pegasus; `load_torch_state_dict` takes
    torch.nn.Transformer's layers.

    Raises:
        ValueError: a size in the configuration is out of range.
    """

    config_class = TransformerConfig
    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.source = nn.Embedding(config.vocab_size, dim)
        shared = config.target_vocab_size is None
        self.target = self.source if shared else nn.Embedding(config.logits_size, dim)
        self.positions = SinusoidalPositions(dim, interleaved=config.interleaved_positions)
        blocks = (config.block(decoder=False), config.block(decoder=True))
        self.encoder = nn.ModuleList(Block(blocks[0]) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(Block(blocks[1]) for _ in range(config.decoder_layers))

        def final_norm() -> nn.Module:
            return nn.LayerNorm(dim, config.norm_eps) if config.has_final_norm else nn.Identity()

        self.encoder_norm, self.decoder_norm = final_norm(), final_norm()
        self.head = None if config.tied else nn.Linear(dim, config.logits_size, bias=False)
        self.logits_bias: nn.Parameter | None = None
        if config.logits_bias:
            self.logits_bias = nn.Parameter(torch.zeros(config.logits_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier's uniform weights and embeddings of variance 1 / dim, or normal ones."""
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std or self.config.dim**-0.5)
            elif isinstance(module, nn.Linear):
                if std is None:
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def table(cls, config: TransformerConfig) -> Table:
        return marian_table(config)

    @classmethod
    def adapted(cls, config: TransformerConfig, names: Collection[str]) -> TransformerConfig:
        return replace(config, logits_bias="final_logits_bias" in names)

    def load_torch_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a torch.nn.Transformer; embeddings and logits stay as they are.

        Raises:
            ValueError: they are not exactly those of this model's layers; nothing is changed then.
        """
        from_checkpoint(torch_table(self.config), state, self._layer_weights())

    def torch_state_dict(self) -> dict[str, Tensor]:
        """The weights of the layers as torch.nn.Transformer names them."""
        return to_checkpoint(torch_table(self.config), self._layer_weights())

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token after each of the target's.

        Args:
            source: integer [batch, source length].
            target: integer [batch, target length], beginning with the start token.
            source_lengths: integer [batch], the tokens of each padded row; default all.
            target_lengths: the same of the target.

        Returns:
            [batch, target length, target's vocab_size], zeros for padding.

        Raises:
            TypeError, ValueError: an argument has a wrong type, shape or value.
        """
        sources = packed_rows(source, source_lengths)
        targets = packed_rows(target, target_lengths)
        states = self.encode(self.embed_source(sources), sources.sequences)
        y = self.embed_target(targets.input_ids, targets.positions)
        y = self.decode(y, states, targets.sequences, sources.sequences)
        return targets.unpack(self.logits(y))

    def loss(
        self,
        source: Tensor,
        target: Tensor,
        source_lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the target's tokens after the first; smoothed in training.

        Args:
            target: integer [batch, length], from the start token to the end token.

        The other arguments are those of `forward`.
        """
        if target_lengths is not None:
            target_lengths = target_lengths - 1
        sources = packed_rows(source, source_lengths).filled_up()
        targets = packed_rows(target[:, :-1], target_lengths).filled_up()
        labels = targets.pack(target[:, 1:], IGNORED).long()
        states = self.encode(self.embed_source(sources), sources.sequences)
        y = self.embed_target(targets.input_ids, targets.positions)
        y = self.decode(y, states, targets.sequences, sources.sequences)
        smoothing = self.config.label_smoothing if self.training else 0.0
        return token_loss(self.logits(y), labels, smoothing)

    def embed_source(self, batch: PackedBatch) -> Tensor:
        """Embeddings and positions of packed tokens, [total, dim]."""
        return self._embed(self.source, batch.input_ids, batch.positions)

    def embed_target(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Embeddings and positions [..., dim] of target tokens [...]."""
        return self._embed(self.target, ids, positions)

    def encode(self, x: Tensor, sequences: Sequences = WHOLE) -> Tensor:
        """The encoder's states.

        Args:
            x: embedded source [batch, length, dim], packed [total, dim].
            sequences: where its sequences are.
        """
        for block in self.encoder:
            x = block(x, sequences)
        states: Tensor = self.encoder_norm(x)
        return states

    def decode(
        self,
        y: Tensor,
        memory: Tensor | Sequence[Memory],
        sequences: Sequences = WHOLE,
        memory_sequences: Sequences = WHOLE,
        caches: Sequence[Cache] | None = None,
    ) -> Tensor:
        """The decoder's states, before the logits.

        Args:
            y: embedded target [batch, length, dim], packed [total, dim]; with caches its next
                tokens.
            memory: the encoder's states, or what `remember` made of them.
            sequences: where y's sequences are.
            memory_sequences: where those of states are.
            caches: one for each decoder layer.
        """
        for layer, block in enumerate(self.decoder):
            y = block(
                y,
                sequences,
                cache=None if caches is None else caches[layer],
                memory=memory if isinstance(memory, Tensor) else memory[layer],
                memory_sequences=memory_sequences,
            )
        states: Tensor = self.decoder_norm(y)
        return states

    def logits(self, y: Tensor) -> Tensor:
        """[..., dim] to [..., target's vocab_size]."""
        weight = self.target.weight if self.head is None else self.head.weight
        return F.linear(y, weight, self.logits_bias)

    def _embed(self, embedding: nn.Embedding, ids: Tensor, positions: Tensor) -> Tensor:
        x = embedding(ids)
        if self.config.scale_embedding:
            x = x * self.config.dim**0.5
        x = x + self.positions(positions, x.dtype)
        return dropout(x, self.config.dropout, self.training)

    def _layer_weights(self) -> dict[str, Tensor]:
        return {n: w for n, w in self.weights().items() if n.startswith(("encoder", "decoder"))}


def packed_rows(ids: Tensor, lengths: Tensor | None) -> PackedBatch:
    """Padded rows [batch, length] of these lengths (None: all) without their padding."""
    return pack_batch(ids, sequences=None if lengths is None else Sequences(lengths=lengths))
