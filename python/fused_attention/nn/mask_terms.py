"""nn.MultiheadAttention's masks as what the kernels take: a band, lengths and a bias."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fused_attention.masks import UNBOUNDED, Band
from fused_attention.nn.inputs import mask_to_4d
from fused_attention.nn.recognition import Shape, broadcast_to_4d, recognize


class MaskTerms(NamedTuple):
    """A mask in the arguments of `attention`; a key is visible if all three let it be."""

    band: Band = Band()
    kv_lengths: Tensor | None = None  # integer [batch]
    bias: Tensor | None = None  # [batch|1, heads|1, len_q|1, len_k|1]

    def hidden(self, len_q: int, len_k: int, device: torch.device) -> Tensor | None:
        """What band and lengths hide, bool [len_q, len_k] or [batch, 1, len_q, len_k]."""
        if self.band.is_full and self.kv_lengths is None:
            return None
        return ~self.band.mask(len_q, len_k, self.kv_lengths, device)

    def and_mask(self, mask: Tensor, scores: Shape, dtype: torch.dtype) -> MaskTerms:
        """Also hide what `mask` hides or, if it is floating point, add it to the scores.

        Args:
            mask: bool, True is hidden, or floating point; broadcastable to `scores`.
            scores: (batch, heads, len_q, len_k).
            dtype: of the bias that a bool mask may become.
        """
        mask = broadcast_to_4d(mask)
        seen = recognize(mask, scores, true_hides=True)
        band = None if seen is None else intersection(self.band, seen.band, *scores[2:])
        if seen is not None and band is not None:
            return MaskTerms(band, _shorter(self.kv_lengths, seen.kv_lengths), self.bias)
        if mask.dtype == torch.bool:
            mask = _bias(mask, dtype)
        return self._replace(bias=_added(self.bias, mask))

    def with_key_in_front(
        self, scores: Shape, dtype: torch.dtype, device: torch.device
    ) -> MaskTerms:
        """The mask of one more key before all others, which every query sees."""
        (*_, len_q, len_k), (band, lengths, bias) = scores, self
        if not band.is_full:
            band = band.resolve(len_q, len_k)
            offset = (band.offset or 0) + 1
            if band.left == UNBOUNDED and offset + band.right >= 0:
                band = Band(band.left, band.right, offset)
            else:  # the new key would be out of it
                bias = _added(bias, _bias(~band.mask(len_q, len_k, device=device), dtype))
                band = Band.full()
        if bias is not None:
            bias = F.pad(bias.expand(*bias.shape[:3], len_k), (1, 0))
        return MaskTerms(band, None if lengths is None else lengths + 1, bias)


def mask_terms(
    scores: Shape,
    dtype: torch.dtype,
    *,
    band: Band | None = None,
    kv_lengths: Tensor | None = None,
    attn_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> MaskTerms:
    """All masks of one call of nn.MultiheadAttention together.

    Args:
        scores: (batch, heads, len_q, len_k).
        dtype: of the bias that a bool mask may become.
        attn_mask: [len_q, len_k] or [batch * heads, len_q, len_k].
        key_padding_mask: [batch, len_k].
        is_causal: attn_mask is the causal mask from the top left, and is not read.

    Raises:
        TypeError, ValueError: a mask has a wrong dtype or shape.
    """
    terms = MaskTerms(band or Band(), kv_lengths)
    if attn_mask is not None:
        mask = mask_to_4d("attn_mask", attn_mask, scores)
        known = _known(is_causal)
        band = intersection(terms.band, Band.causal(0), *scores[2:]) if known else None
        terms = terms.and_mask(mask, scores, dtype) if band is None else terms._replace(band=band)
    if key_padding_mask is not None:
        mask = mask_to_4d("key_padding_mask", key_padding_mask, scores)
        terms = terms.and_mask(mask, scores, dtype)
    return terms


def _known(hint: bool) -> bool:
    """The hint, which torch.compile may not know: nn.TransformerEncoder finds it in the mask."""
    if not torch.compiler.is_compiling():
        return hint
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(hint)


def intersection(one: Band, other: Band, len_q: int, len_k: int) -> Band | None:
    """The band of the keys that both show, None if that is none."""
    if other.is_full:
        return one
    if one.is_full:
        return other
    one, other = one.resolve(len_q, len_k), other.resolve(len_q, len_k)
    # As diagonals: the key minus the query.
    first = max((band.offset or 0) - band.left for band in (one, other))
    last = min((band.offset or 0) + band.right for band in (one, other))
    if first > last:
        return None
    if first <= 1 - len_q:
        return Band.full() if last >= len_k - 1 else Band(UNBOUNDED, 0, last)
    return Band(0, UNBOUNDED, first) if last >= len_k - 1 else Band(last - first, 0, last)


def _bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    hidden = broadcast_to_4d(hidden)
    return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, -torch.inf)


def _added(bias: Tensor | None, more: Tensor) -> Tensor:
    return more if bias is None else bias + more


def _shorter(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return torch.minimum(one, other)
