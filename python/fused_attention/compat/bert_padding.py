"""Between padded and packed batches, with the interface of flash_attn.bert_padding.

Unlike `fused_attention.attention`'s kv_lengths this moves the tokens, so everything after it works
without padding. How many tokens there are is read from the mask: on a GPU that waits for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "index_first_axis",
    "index_put_first_axis",
    "pad_input",
    "unpad_input",
    "unpad_input_for_concatenated_sequences",
]


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:  # noqa: A002 upstream's name
    """The rows `indices` (integer [n]) of `input` [rows, ...]: [n, ...], differentiable."""
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """Zeros [first_axis_dim, ...] with `values` [n, ...] in the rows `indices`, differentiable."""
    return values.new_zeros((first_axis_dim, *values.shape[1:])).index_copy(0, indices, values)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Pack the tokens of a padded batch.

    Args:
        hidden_states: [batch, seqlen, ...].
        attention_mask: bool or integer [batch, seqlen], true where a token is.
        unused_mask: bool or integer [batch, seqlen], true where room is kept that no token uses.

    Returns:
        tokens [total, ...] of both masks; their int64 indices [total] into batch * seqlen;
        cu_seqlens int32 [batch + 1]; the longest sequence; and int32 [batch], how many tokens of
        each sequence stand in attention_mask alone.
    """
    used = attention_mask.bool()
    kept = used if unused_mask is None else used | unused_mask.bool()
    lengths = _count(kept)
    indices = kept.flatten().nonzero().flatten()
    tokens = index_first_axis(hidden_states.flatten(0, 1), indices)
    return tokens, indices, _cu_seqlens(lengths), _longest(lengths), _count(used)


def unpad_input_for_concatenated_sequences(
    hidden_states: Tensor, attention_mask_in_length: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Pack a batch whose rows each hold several short sequences, one after the other.

    Args:
        hidden_states: [batch, seqlen, ...].
        attention_mask_in_length: integer [batch, seqlen]; a row lists the lengths of its sequences
            and is filled up with 0: (2, 3, 0, 0, 0, 0) is a sequence of 2, one of 3, one place of
            padding.

    Returns:
        tokens [total, ...]; their indices [total]; cu_seqlens int32 [sequences + 1]; the longest
        sequence.
    """
    row_length = attention_mask_in_length.sum(dim=-1, keepdim=True)
    place = torch.arange(attention_mask_in_length.shape[-1], device=row_length.device)
    indices = (place < row_length).flatten().nonzero().flatten()
    lengths = attention_mask_in_length[attention_mask_in_length != 0]
    tokens = index_first_axis(hidden_states.flatten(0, 1), indices)
    return tokens, indices, _cu_seqlens(lengths), _longest(lengths)


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """The inverse of `unpad_input`.

    Args:
        hidden_states: [total, ...].
        indices: what `unpad_input` returned.

    Returns:
        [batch, seqlen, ...], 0 in the padding.
    """
    padded = index_put_first_axis(hidden_states, indices, batch * seqlen)
    return padded.view(batch, seqlen, *padded.shape[1:])


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dim=-1, dtype=torch.int32)


def _cu_seqlens(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def _longest(lengths: Tensor) -> int:
    return int(lengths.max()) if lengths.numel() else 0
