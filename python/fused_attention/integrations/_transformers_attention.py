"""The attention of one layer of a transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from fused_attention import log
from fused_attention.functional import attention, attention_varlen
from fused_attention.integrations._transformers_masks import FusedMask
from fused_attention.integrations._transformers_packing import Segments
from fused_attention.integrations._transformers_visible import (
    Visible,
    remembered,
    visible_in_tensor,
    visible_without_padding,
)
from fused_attention.masks import Band
from fused_attention.nn.recognition import recognize

NAME = "fused_attention"

_FULL = Visible(Band.full())
_CAUSAL = Visible(Band.causal())
# What models hand to kernels of their own, and would be lost without a word.
_REFUSED = {
    "cache": "continuous batching with a paged cache",
    "indices": "attention to keys that an indexer selects",
    "block_indices": "attention to blocks of keys that an indexer selects",
    "sinks": "sinks that differ from token to token",
}
_logger = logging.get_logger(__name__)


def fused_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: FusedMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, called by transformers' models.

    Args:
        module: the layer; asked for `is_causal` where there is no mask.
        query: [batch, heads, len_q, head_dim].
        key: [batch, heads_kv, len_k, head_dim]; heads_kv divides heads.
        value: [batch, heads_kv, len_k, value_dim].
        attention_mask: what `fused_attention_mask` made; or a tensor [batch | 1, heads | 1,
            len_q | 1, len_k or more], bool (True: visible) or added to the scores; or [batch,
            len_k], False or 0 where padded; or None.
        dropout: chance that a probability is dropped.
        scaling: of the scores; default 1 / sqrt(head_dim).
        sliding_window: keys that a query sees, itself included; counts, like `is_causal`, only
            where the mask does not say everything: without one, or with padding alone.
        softcap: scores become softcap * tanh(scores / softcap).
        is_causal: default the module's, or True.
        position_bias: added to the scores, [batch | 1, heads, len_q, len_k].
        s_aux: [heads], one more logit per row that has no value ("sink").
        kwargs: cu_seq_lens_q, cu_seq_lens_k [sequences + 1], max_length_q and max_length_k for
            sequences that are packed without a mask that says so; deterministic. All others are
            ignored.

    Returns:
        [batch, len_q, heads, value_dim], contiguous, and None: the probabilities never exist.

    Raises:
        TypeError, ValueError, NotImplementedError: as `fused_attention.attention`.
    """
    _refuse(kwargs)
    if query.shape[0] != key.shape[0]:  # such as learned queries, the same for the whole batch
        query, key, value = _expand_batch(query, key, value)
    query, key, value = _row_contiguous(query), _row_contiguous(key), _row_contiguous(value)
    visible = _visible(module, query, key, attention_mask, is_causal, sliding_window)
    options: dict[str, Any] = {
        "scale": scaling,
        "softcap": 0.0 if softcap is None else softcap,
        "sinks": s_aux,
        "dropout_p": dropout,
        "deterministic": bool(kwargs.get("deterministic")),
    }
    segments = visible.segments
    if kwargs.get("cu_seq_lens_q") is not None and not visible.has_padding:
        segments = _given_segments(**kwargs)
    if segments is not None and position_bias is None:
        return _attend_segments(query, key, value, visible.band, segments, options), None
    bias = visible.bias
    if position_bias is not None:
        if bias is None and visible.segments is not None:
            assert isinstance(attention_mask, FusedMask)  # nothing else finds sequences
            bias = visible_in_tensor(attention_mask.tensor(), query.dtype).bias
        bias = position_bias if bias is None else position_bias + bias
    options |= {
        "band": visible.band,
        "band_offsets": visible.band_offsets,
        "kv_lengths": visible.kv_lengths,
        "bias": bias,
    }
    if log.enabled:
        log.attended("transformers", query, key, value, **options)
    out = attention(query, key, value, **options)
    return out.transpose(1, 2).contiguous(), None


def _refuse(asked: dict[str, Any]) -> None:
    for name, what in _REFUSED.items():
        if asked.get(name) is not None:
            raise NotImplementedError(
                f'attn_implementation="{NAME}": cannot do {what}, which this model asks for '
                f"({name})"
            )
    if asked.get("output_attentions"):
        _logger.warning_once(
            f'attn_implementation="{NAME}" never has the attention probabilities that '
            'output_attentions=True asks for; use "eager" to get them'
        )


def _visible(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    mask: FusedMask | Tensor | None,
    is_causal: bool | None,
    sliding_window: int | None,
) -> Visible:
    """What the queries see: the mask says it, and where there is none the other arguments do."""
    if isinstance(mask, FusedMask):
        wanted, got = (mask.shape[2], mask.shape[3]), (query.shape[2], key.shape[2])
        if wanted != got:
            raise ValueError(
                f"attention_mask: was made for {wanted[0]} queries and {wanted[1]} keys, "
                f"got {got[0]} and {got[1]}"
            )
        return mask.visible
    if mask is None or mask.dim() == 2:
        implied = _implied(module, is_causal, sliding_window)
        if mask is None:
            return implied
        padding = mask[:, -key.shape[2] :]
        return visible_without_padding(padding, query.shape[2], implied.band, query.dtype)
    return _of_tensor(mask, query, key)


def _implied(
    module: torch.nn.Module, is_causal: bool | None, sliding_window: int | None
) -> Visible:
    """What transformers' flash attention lets queries see without a mask."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if sliding_window is None:
        return _CAUSAL if causal else _FULL
    if sliding_window < 1:
        raise ValueError(f"sliding_window: must be at least 1, got {sliding_window}")
    reach = sliding_window - 1
    return Visible(Band(reach, 0 if causal else reach))


def _of_tensor(mask: Tensor, query: Tensor, key: Tensor) -> Visible:
    """A mask that a user or a model made: as a band where it is one, else as a bias."""
    batch, heads, len_q, _ = query.shape
    len_k = key.shape[2]
    if mask.dim() != 4:
        raise ValueError(
            "attention_mask: must be 4-D [batch, heads, len_q, len_k] or 2-D [batch, len_k], got "
            f"shape {tuple(mask.shape)}"
        )
    if mask.shape[-1] == len_k:
        known = remembered(mask)
        if known is not None:
            return known
    mask = mask[..., :len_k]  # one made for more keys than there are yet
    recognized = recognize(mask, (batch, heads, len_q, len_k))
    if recognized is not None:
        return Visible(recognized.band, kv_lengths=recognized.kv_lengths)
    visible = visible_in_tensor(mask, query.dtype)
    if visible.kv_lengths is not None:
        visible = visible._replace(kv_lengths=visible.kv_lengths.expand(batch))
    return visible


def _attend_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    band: Band,
    segments: Segments,
    options: dict[str, Any],
) -> Tensor:
    """[batch, len_q, heads, value_dim]: the rows of the batch as one packed row of sequences."""
    batch, heads, len_q, _ = query.shape
    query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    ends = (segments.cu_seqlens_q, segments.cu_seqlens_k)
    options = {
        **options,
        "band": Band(band.left, band.right, None if segments.band_offsets is None else 0),
        "band_offsets": segments.band_offsets,
        "max_seqlen_q": segments.max_seqlen_q,
        "max_seqlen_k": segments.max_seqlen_k,
    }
    if log.enabled:
        log.attended("transformers", query, key, value, *ends, **options)
    out: Tensor = attention_varlen(query, key, value, *ends, **options)
    return out.reshape(batch, len_q, heads, -1).contiguous()


def _given_segments(
    *,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | Tensor | None = None,
    max_length_k: int | Tensor | None = None,
    **_: Any,
) -> Segments:
    """What a padding-free collator passes beside the input; its lengths may be tensors."""
    # Reading a tensor would wait for the device, and the lengths are only a hint.
    max_q = max_length_q if isinstance(max_length_q, int) else None
    max_k = max_length_k if isinstance(max_length_k, int) else None
    return Segments(cu_seq_lens_q, cu_seq_lens_k, max_q, max_k)


def _expand_batch(*tensors: Tensor) -> tuple[Tensor, ...]:
    batch = max(tensor.shape[0] for tensor in tensors)
    return tuple(tensor.expand(batch, -1, -1, -1) for tensor in tensors)


def _row_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
