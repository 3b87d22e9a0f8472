"""Which keys queries see, in the terms of `attention`: a mask once it has been looked at."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils.import_utils import is_tracing

from fused_attention.integrations._transformers_packing import Segments, without_padding
from fused_attention.masks import UNBOUNDED, Band

_INTEGERS = torch.int32


class Visible(NamedTuple):
    """Which keys each query sees, in the terms of `attention`.

    Attributes:
        band: as far as a band says it.
        band_offsets: int32 [batch], replaces the band's offset.
        kv_lengths: int32 [batch], keys from there on are hidden.
        bias: added to the scores, [batch | 1, heads | 1, len_q | 1, len_k].
        segments: the same mask, but for padded queries, as sequences of the flattened batch.
    """

    band: Band
    band_offsets: Tensor | None = None
    kv_lengths: Tensor | None = None
    bias: Tensor | None = None
    segments: Segments | None = None

    @property
    def has_padding(self) -> bool:
        """Whether anything but the band, and where sequences begin, hides keys."""
        return not (self.band_offsets is None and self.kv_lengths is None and self.bias is None)

    def to(self, device: torch.device) -> Visible:
        rest = {name: x for name, x in self._asdict().items() if name != "band" and x is not None}
        return self._replace(**{name: x.to(device) for name, x in rest.items()})


def visible_without_padding(padding: Tensor, len_q: int, band: Band, dtype: torch.dtype) -> Visible:
    """What the queries see of keys of which some are padding.

    Args:
        padding: [batch, len_k], False or 0 where padded.
        len_q: number of queries; the last one stands at the last key.
        band: which of the other keys they see.
        dtype: of the bias, where there must be one.
    """
    batch, len_k = padding.shape
    shape = (batch, 1, len_q, len_k)
    padding = padding.to(torch.bool)
    return visible_of_band(shape, band, len_k - len_q, padding, is_tracing(padding), dtype)


def visible_in_tensor(mask: Tensor, dtype: torch.dtype) -> Visible:
    """What a mask shows that is no band.

    Args:
        mask: [batch, heads | 1, len_q | 1, len_k], bool or added to the scores.
        dtype: of the bias that a bool mask becomes.
    """
    lengths = None
    if mask.dtype == torch.bool and mask.shape[1] == mask.shape[2] == 1:
        # A step of decoding with a static cache, most of which may be empty.
        after_last = mask[:, 0, 0].flip(-1).to(torch.uint8).argmax(-1)
        lengths = (mask.shape[-1] - after_last).to(_INTEGERS)
    bias = hiding(mask, dtype) if mask.dtype == torch.bool else mask
    return Visible(Band.full(), kv_lengths=lengths, bias=bias)


def remember(mask: Tensor, visible: Visible) -> Tensor:
    """Note on a tensor what it shows, for all the layers that get it."""
    mask._fused_attention = (_version(mask), visible)  # type: ignore[attr-defined]
    return mask


def remembered(mask: Tensor) -> Visible | None:
    """What is noted on a tensor that has not changed since."""
    if torch.compiler.is_compiling():
        return None
    version, visible = getattr(mask, "_fused_attention", (None, None))
    return visible if version == _version(mask) else None


def _version(tensor: Tensor) -> int:
    """How often the tensor was written to; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def hiding(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias that hides where `visible` is False."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, -torch.inf)


def visible_of_band(
    shape: tuple[int, int, int, int],
    band: Band,
    offset: int | Tensor,
    padding: Tensor | None,
    tracing: bool,
    dtype: torch.dtype,
) -> Visible:
    """The band, with its diagonal at `offset`, over keys that `padding` shows to be there."""
    batch, _, len_q, len_k = shape
    if isinstance(offset, Tensor):
        visible = Visible(band, band_offsets=offset.to(_INTEGERS).expand(batch))
    else:
        bottom_right = offset == len_k - len_q
        visible = Visible(Band(band.left, band.right, None if bottom_right else offset))
    if padding is None:
        return visible
    if tracing:  # where the padding is must not be looked at
        return visible._replace(bias=_hiding_keys(padding, dtype))
    begins, ends, holes = _extents(padding)
    if holes:
        return visible._replace(bias=_hiding_keys(padding, dtype))
    if not any(begins):
        # What the last query sees is there in every row: the band hides the rest by itself.
        if min(ends) >= min(len_k, int(offset) + len_q + band.right):
            return visible
        return visible._replace(kv_lengths=_integers(ends, padding))
    if len_q == 1:
        first = [max(begin, int(offset) - band.left) for begin in begins]
        stop = [max(0, min(end, int(offset) + band.right + 1)) for end in ends]
        onwards = Band(0, UNBOUNDED, 0)
        return Visible(onwards, _integers(first, padding), _integers(stop, padding))
    if band.right == 0 and offset == 0 and len_q == len_k:
        segments = without_padding(begins, ends, len_k, padding.device)
        visible = visible._replace(segments=segments)
    return visible._replace(bias=_hiding_keys(padding, dtype))


def _hiding_keys(padding: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, 1, 1, len_k]."""
    return hiding(padding, dtype)[:, None, None, :]


def _extents(padding: Tensor) -> tuple[list[int], list[int], bool]:
    """Of each row the first token and the one after the last, and whether padding lies between."""
    batch, len_k = padding.shape
    if padding.all():
        return [0] * batch, [len_k] * batch, False
    numbers = padding.to(_INTEGERS)
    counts = numbers.sum(-1)
    begins = numbers.argmax(-1)
    ends = torch.where(counts > 0, len_k - numbers.flip(-1).argmax(-1), 0)
    # One transfer for all three.
    rows = torch.stack((begins, ends, counts)).tolist()
    holes = any(end - begin != count for begin, end, count in zip(*rows, strict=True))
    return rows[0], rows[1], holes


def _integers(numbers: list[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=_INTEGERS, device=like.device)
