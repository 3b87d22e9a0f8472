"""GPT: decoder-only language models from GPT-1 to Llama and Mistral, on the fused kernels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fused_attention.checks import wrong_value
from fused_attention.models.gpt_config import GPTConfig
from fused_attention.models.gpt_families import FAMILIES
from fused_attention.models.pretrained import PretrainedModel
from fused_attention.models.tables.gpt import TABLES
from fused_attention.models.token_loss import token_loss
from fused_attention.models.weights import Table
from fused_attention.nn import (
    Block,
    Cache,
    Sequences,
    SinusoidalPositions,
    attention_layers,
    make_norm,
)
from fused_attention.nn.dropout import dropout


class GPT(PretrainedModel):
    """A stack of causal blocks between an embedding and a head (Radford et al. 2018, 2019).

    `generation.generate` and `generation.stream` write texts with it.
    """

    config_class: ClassVar[Any] = GPTConfig
    config: GPTConfig

    def __init__(
        self,
        config: GPTConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config)
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(config.vocab_size, config.dim, **place)
        self.positions: nn.Module | None = None
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_length, config.dim, **place)
        elif config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(config.dim)
        self.rotary = config.rotary()
        blocks = (Block(config.block(layer), **place) for layer in range(config.layers))
        self.blocks = nn.ModuleList(blocks)
        last = config.norm if config.norm_first else "none"
        self.norm = make_norm(last, config.dim, config.norm_eps, **place)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False, **place)
        if config.tied:
            self.head.weight = self.embedding.weight
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """GPT-2's: what ends a residual branch is smaller, for the sum of all of them."""
        std, branches = self.config.initializer_range, 2 * self.config.layers
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                continue
            ends_branch = name.endswith(("out_proj.weight", "down.weight"))
            nn.init.normal_(parameter, 0.0, std / branches**0.5 if ends_branch else std)

    @classmethod
    def table(cls, config: GPTConfig) -> Table:
        return TABLES[FAMILIES[config.to_hf()["model_type"]].table](config)

    def new_caches(
        self,
        batch: int,
        max_length: int,
        *,
        page_size: int | None = None,
        pages: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> list[Cache]:
        """An empty cache for each block, see nn.Attention.new_cache."""
        options: dict[str, Any] = {"page_size": page_size, "pages": pages, "dtype": dtype}
        layers = attention_layers(self).values()
        return [layer.new_cache(batch, max_length, **options) for layer in layers]

    def forward(
        self,
        input_ids: Tensor,
        *,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        """The logits of the token after each token.

        Args:
            input_ids: integer [batch, length], packed [total].
            lengths: integer [batch], the tokens of each row; what lies beyond is padding.
            cu_seqlens: integer [sequences + 1], where packed sequences begin and end.
            max_seqlen: the longest of them, or more.
            caches: from `new_caches`; the tokens follow those that they hold. `lengths` counts
                the new tokens.

        Returns:
            [batch, length, vocab_size], packed [total, vocab_size].

        Raises:
            ValueError: input_ids has another shape, or is longer than learned positions are.
        """
        sequences = Sequences(lengths, cu_seqlens, max_seqlen)
        logits: Tensor = self.head(self.states(input_ids, sequences, caches))
        return logits

    def states(
        self,
        input_ids: Tensor,
        sequences: Sequences | None = None,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        """What the head is given, [..., dim]; the arguments are those of `forward`."""
        sequences = sequences or Sequences()
        positions = self._positions(input_ids, sequences, caches)
        x = self.embedding(input_ids)
        if self.positions is not None:
            x = x + self.positions(positions).to(x.dtype)
        x = dropout(x, self.config.embedding_dropout, self.training)
        rotation = None
        if self.rotary is not None:
            head_dim = self.config.head_dim or self.config.dim // self.config.heads
            rotation = self.rotary.rotation(positions, head_dim, x.dtype)
        for layer, block in enumerate(self.blocks):
            cache = None if caches is None else caches[layer]
            x = block(x, sequences, rotation=rotation, cache=cache)
        states: Tensor = self.norm(x)
        return states

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        *,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> Tensor:
        """The mean cross-entropy of the labels, in nats.

        Args:
            labels: like input_ids, the token after each token; -100 counts for nothing.

        The other arguments are those of `forward`.
        """
        logits = self(input_ids, lengths=lengths, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        return token_loss(logits.flatten(0, -2), labels.flatten())

    def _positions(
        self, input_ids: Tensor, sequences: Sequences, caches: list[Cache] | None
    ) -> Tensor:
        rank = 1 if sequences.packed else 2
        if input_ids.dim() != rank:
            shape = "[total] with cu_seqlens" if sequences.packed else "[batch, length]"
            wrong_value("input_ids", f"must have shape {shape}", f"shape {tuple(input_ids.shape)}")
        longest = input_ids.shape[-1]
        if sequences.packed and sequences.max_length is not None:
            longest = min(longest, sequences.max_length)
        before = 0 if caches is None else caches[0].length
        limit = self.config.max_length
        # Packed, the longest sequence is unknown without max_length: the embedding will tell.
        known = not sequences.packed or sequences.max_length is not None
        if self.config.positions == "learned" and known and before + longest > limit:
            wrong_value("input_ids", f"must not exceed {limit} tokens", before + longest)
        return sequences.positions(input_ids) if caches is None else caches[0].positions(longest)
