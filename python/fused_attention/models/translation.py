"""Translations by an encoder-decoder: beam search over steps that keep their past."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_attention.models.beam_search import Hypothesis, beam_search
from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_steps import StepwiseDecoder
from fused_attention.models.transformer import Transformer, packed_rows
from fused_attention.nn.block import Block
from fused_attention.nn.sequences import Sequences

MORE = 50  # tokens that a translation may be longer than its source, as in the Transformer's paper
EncoderDecoder = Transformer | Seq2Seq


@torch.no_grad()
def translate(
    model: EncoderDecoder,
    source: Tensor,
    source_lengths: Tensor | None = None,
    *,
    beams: int = 4,
    length_penalty: float = 0.6,
    max_length: int | None = None,
) -> list[list[Hypothesis]]:
    """The best translations of each row that beam search finds.

    Args:
        model: in evaluation mode.
        source: integer [batch, length].
        source_lengths: integer [batch], the tokens of each padded row; default all.
        beams: hypotheses that are kept; 1 is greedy search.
        length_penalty: see beam_search.
        max_length: tokens of a translation, its end included; default 50 more than the longest
            source has.

    Returns:
        For each row up to `beams` hypotheses without start and end, the best first.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or value.
        RuntimeError: the model is in training mode.
    """
    if model.training:
        raise RuntimeError("model: must be in evaluation mode (call eval())")
    if max_length is None:
        max_length = source.shape[1] + MORE
    config = model.config
    decoder: Decoder | StepwiseDecoder
    if isinstance(model, Seq2Seq):
        decoder = StepwiseDecoder(model, source, source_lengths, rows=beams)
    else:
        decoder = Decoder(model, source, source_lengths, rows=beams, max_length=max_length)
    return beam_search(
        decoder.step,
        decoder.reorder,
        torch.full_like(source[:, 0], config.start_token, dtype=torch.int64),
        end=config.end_token,
        max_length=max_length,
        beams=beams,
        length_penalty=length_penalty,
        forbidden={config.pad_token} - {config.end_token},
    )


class Decoder:
    """The Transformer's side of a translation: some rows for each source, one token a step.

    Args:
        source: integer [batch, length].
        source_lengths: integer [batch]; None is all.
        rows: for each source, one after the other.
        max_length: steps at most.
    """

    def __init__(
        self,
        model: Transformer,
        source: Tensor,
        source_lengths: Tensor | None = None,
        *,
        rows: int = 1,
        max_length: int,
    ) -> None:
        self.model = model
        sources = packed_rows(source, source_lengths)
        states = sources.unpack(model.encode(model.embed_source(sources), sources.sequences))
        # All rows of a source look at the same states, so these never have to be reordered.
        states = states.repeat_interleave(rows, 0)
        lengths = None
        if source_lengths is not None:
            lengths = source_lengths.repeat_interleave(rows, 0)
        blocks = [block for block in model.decoder if isinstance(block, Block)]
        self.memory = [block.remember(states, Sequences(lengths=lengths)) for block in blocks]
        count = len(states)
        self.caches = [block.attention.new_cache(count, max_length) for block in blocks]

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits [rows, vocab_size] of what comes after the tokens [rows]."""
        y = self.model.embed_target(tokens[:, None], self.caches[0].positions(1))
        return self.model.logits(self.model.decode(y, self.memory, caches=self.caches))[:, 0]

    def reorder(self, rows: Tensor) -> None:
        """Row n goes on from what row rows[n] was."""
        for cache in self.caches:
            cache.reorder(rows)
