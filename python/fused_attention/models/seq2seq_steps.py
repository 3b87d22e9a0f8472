"""One token after the other through a recurrent encoder-decoder, and where it looks meanwhile."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.models.seq2seq import Seq2Seq
from fused_attention.models.seq2seq_encoder import check_ids, check_lengths
from fused_attention.nn.luong_attention import LuongAttention


class StepwiseDecoder:
    """The decoder's side of a translation: some rows for each source, one token a step.

    Args:
        source: integer [batch, length].
        source_lengths: integer [batch]; None is all.
        rows: for each source, one after the other.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Seq2Seq,
        source: Tensor,
        source_lengths: Tensor | None = None,
        *,
        rows: int = 1,
    ) -> None:
        self.model = model
        encoded = model.encode(source, source_lengths)
        annotations = model.decoder.remember(encoded)
        # All rows of a source look at the same states, so these never have to be reordered.
        self.annotations = None if annotations is None else annotations.repeated(rows)
        first = torch.arange(len(source), device=source.device).repeat_interleave(rows)
        self.state = model.decoder.start(encoded).of(first)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits [rows, vocab_size] of what comes after the tokens [rows]."""
        y = self.model.embed_target(tokens[:, None])
        decoded = self.model.decoder(y, self.state, self.annotations)
        self.state = decoded.state
        return self.model.logits(decoded.features)[:, 0]

    def reorder(self, rows: Tensor) -> None:
        """Row n goes on from what row rows[n] was."""
        self.state = self.state.of(rows)


class Alignment(NamedTuple):
    """Where a decoder looked at each step; what lies beyond a row's lengths is 0."""

    weights: Tensor  # [batch, steps, source length]
    places: Tensor | None  # [batch, steps], p of local-m and local-p, 0 is the first source token
    first: Tensor | None  # int64 [batch, steps], the window's first source token
    last: Tensor | None  # the same of its last; before `first` where the window is empty


@torch.no_grad()
def align(
    model: Seq2Seq,
    source: Tensor,
    target: Tensor,
    source_lengths: Tensor | None = None,
    target_lengths: Tensor | None = None,
) -> Alignment:
    """The attention weights of steps that are given the target.

    Args:
        model: in evaluation mode, with an attention.
        source: integer [batch, source length].
        target: integer [batch, length], from the start token to the end token; step t predicts
            token t + 1, so there is one step less than tokens.
        source_lengths: integer [batch], the tokens of each padded row; default all.
        target_lengths: the same of the target.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or value.
        RuntimeError: the model has no attention, or is in training mode.
    """
    if model.training:
        raise RuntimeError("model: must be in evaluation mode (call eval())")
    check_ids("target", target)
    steps = torch.full((len(target),), target.shape[1] - 1, device=target.device)
    if target_lengths is not None:
        check_lengths("target_lengths", target_lengths, target)
        steps = target_lengths - 1
    encoded = model.encode(source, source_lengths)
    decoded = model.decode(encoded, target[:, :-1], steps)
    annotations = model.decoder.remember(encoded)
    if annotations is None:
        raise RuntimeError("model: must have an attention, its config says none")
    exists = torch.arange(target.shape[1] - 1, device=target.device) < steps[:, None]
    weights = model.decoder.weights(decoded, annotations) * exists[..., None]
    attention = model.decoder.attention
    if not isinstance(attention, LuongAttention) or attention.window == "global":
        return Alignment(weights, None, None, None)
    places = attention.places(decoded.queries, annotations) * exists
    middle, width = places.floor(), attention.width
    ends = annotations.true_lengths()[:, None] - 1
    first = (middle - width).ceil().clamp(min=0).long()
    last = torch.minimum((middle + width).floor().long(), ends)
    return Alignment(weights, places, first * exists, last * exists)
