"""Masks that come as tensors, recognised as the band and the lengths that they are.

A causal mask, a sliding window and right padding are a Band and kv_lengths: kernels skip what
these hide, while a tensor of the same content is read for every score. Recognising is exact: a
mask with one element out of place stays a tensor.
"""

from __future__ import annotations

import math
import weakref
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from fused_attention.masks import UNBOUNDED, Band

Shape = tuple[int, int, int, int]

_EVERYTHING = Band(UNBOUNDED, UNBOUNDED, 0)
# Where finfo.min hides like -inf: a score added to it rounds back to it, or overflows to -inf.
_WIDE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_VIEWS_REMEMBERED = 64  # per tensor; a loop over the lengths of a cache makes a view for each
_PROBED = 8
# With fewer scores, looking at the mask takes longer than the kernel with a bias.
_FEWEST_SCORES = 1 << 14


class Visibility(NamedTuple):
    """The keys that a mask leaves visible."""

    band: Band  # with its offset resolved
    kv_lengths: Tensor | None  # int32 [batch]


class _Remembered(NamedTuple):
    owner: weakref.ref[Tensor]
    version: int
    views: dict[tuple[object, ...], Visibility | None]


_remembered: dict[int, _Remembered] = {}


def recognize(mask: Tensor, scores: Shape, *, true_hides: bool = False) -> Visibility | None:
    """The band and the lengths that `mask` is, or None if it is anything else.

    The answer is remembered for as long as the tensor lives unchanged, views of it included. As
    for autograd, a change that torch does not count (through NumPy or `.data`) is not seen.

    Looks at masks of more than a few scores on the CPU only: elsewhere that would wait for the
    device, and the tensors that compilers and torch.func trace with hold no numbers.

    Args:
        mask: bool, or floating point with 0 and -inf (the lowest number of fp32, bf16 or fp64 is
            as good as -inf where a row sees a key); broadcastable to `scores`.
        scores: (batch, heads, len_q, len_k).
        true_hides: what True means in a bool mask; scaled_dot_product_attention shows these keys,
            nn.MultiheadAttention hides them.
    """
    if not _readable(mask) or math.prod(scores) < _FEWEST_SCORES:
        return None
    if mask.is_inference():  # such tensors do not count their changes
        return _recognize(mask, scores, true_hides)
    base = mask._base
    owner = mask if base is None else base
    entry = _remembered.get(id(owner))
    if entry is None or entry.version != owner._version or entry.owner() is not owner:
        entry = _remember(owner)
    shape = (mask.shape, mask.stride(), mask.storage_offset(), mask.dtype)
    view = (*shape, scores, true_hides)
    if view not in entry.views:
        if len(entry.views) >= _VIEWS_REMEMBERED:
            entry.views.clear()
        entry.views[view] = _recognize(mask, scores, true_hides)
    return entry.views[view]


def broadcast_to_4d(mask: Tensor) -> Tensor:
    """Leading dimensions of size 1 up to [batch|1, heads|1, len_q|1, len_k|1]."""
    return mask[(None,) * (4 - mask.dim())] if mask.dim() < 4 else mask


def broadcasts(mask: Tensor, scores: Shape) -> bool:
    """Whether the mask broadcasts to `scores` without enlarging it."""
    if mask.dim() > 4:
        return False
    sizes = zip(mask.shape, scores[4 - mask.dim() :], strict=True)
    return all(size in (1, wanted) for size, wanted in sizes)


def without_copies(mask: Tensor) -> Tensor:
    """Expanded dimensions narrowed to size 1: each number once."""
    for dim in range(mask.dim()):
        if mask.stride(dim) == 0 and mask.shape[dim] > 1:
            mask = mask.narrow(dim, 0, 1)
    return mask


def _readable(mask: Tensor) -> bool:
    """Whether the mask holds numbers that may be looked at now."""
    return (
        not torch.compiler.is_compiling()
        and type(mask) in (Tensor, Parameter)
        and mask.device.type == "cpu"
        and not (mask.requires_grad and torch.is_grad_enabled())
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _remember(owner: Tensor) -> _Remembered:
    number = id(owner)

    def forget(_: object) -> None:
        _remembered.pop(number, None)

    entry = _remembered[number] = _Remembered(weakref.ref(owner, forget), owner._version, {})
    return entry


def _recognize(mask: Tensor, scores: Shape, true_hides: bool) -> Visibility | None:
    batch, _, len_q, len_k = scores
    if mask.dim() == 0 or mask.numel() == 0 or not broadcasts(mask, scores):
        return None
    mask = without_copies(mask)
    if mask.shape[-1] != len_k:  # about queries, not about keys
        return None
    with torch.no_grad():
        visible = _visible(mask, true_hides)
        if visible is None:
            return None
        if mask.dim() > 2:
            if not _alike(visible, dim=-3):
                return None
            visible = visible.select(-3, 0)
        rows = visible if visible.dim() == 3 else visible.reshape(1, -1, len_k)
        return _band_and_lengths(rows, batch, len_q)


def _visible(mask: Tensor, true_hides: bool) -> Tensor | None:
    """The mask as a bool tensor, True where visible; None if it is more than a mask."""
    if mask.dtype == torch.bool:
        return ~mask if true_hides else mask
    if not mask.is_floating_point():
        return None
    lowest = torch.finfo(mask.dtype).min if mask.dtype in _WIDE_DTYPES else -torch.inf
    first = mask[(0,) * (mask.dim() - 1)][:_PROBED].tolist()
    if any(number != 0 and number > lowest for number in first):
        return None  # most biases end here
    visible, hidden = mask == 0, mask <= lowest
    if not (visible | hidden).all():
        return None
    if (
        lowest != -torch.inf
        and not visible.any(-1).all()
        and not (mask[hidden] == -torch.inf).all()
    ):
        return None  # a row of lowest numbers alone is a uniform average, not hidden
    return visible


def _alike(tensor: Tensor, dim: int) -> bool:
    """Whether all slices along `dim` are equal."""
    size = tensor.shape[dim]
    return size == 1 or torch.equal(
        tensor.narrow(dim, 1, size - 1), tensor.narrow(dim, 0, size - 1)
    )


def _band_and_lengths(rows: Tensor, batch: int, len_q: int) -> Visibility | None:
    """`rows`: visible keys, bool [batch|1, len_q|1, len_k]."""
    if _alike(rows, dim=0):
        band = _band(rows[0], len_q)
        if band is not None:
            return Visibility(band, None)
    len_k = rows.shape[-1]
    ends = torch.arange(1, len_k + 1, dtype=torch.int32, device=rows.device)
    lengths = (rows.any(1) * ends).amax(-1)  # the last visible key of each batch row, plus 1
    longest = int(lengths.argmax())
    length = int(lengths[longest])
    first = rows[longest]
    if len(rows) > 1 and not torch.equal(rows, first & (ends <= lengths[:, None, None])):
        return None
    band = _band(first[:, :length], len_q) if length else _EVERYTHING
    if band is None:
        return None
    all_exist = length == len_k and (len(rows) == 1 or bool((lengths == len_k).all()))
    return Visibility(band, None if all_exist else lengths.expand(batch).contiguous())


def _band(visible: Tensor, len_q: int) -> Band | None:
    """The band that bool [len_q|1, keys] is; None also if it hides everything."""
    rows, keys = visible.shape
    if rows != len_q:  # the same for every query
        return _EVERYTHING if visible.all() else None
    if rows > 1 and keys > 1 and not torch.equal(visible[1:, 1:], visible[:-1, :-1]):
        return None
    # Equal along every diagonal, so the first column and the first row say it all.
    diagonals = visible[:, 0].tolist()[::-1] + visible[0].tolist()[1:]
    if True not in diagonals:
        return None
    first = diagonals.index(True)
    last = len(diagonals) - 1 - diagonals[::-1].index(True)
    if not all(diagonals[first : last + 1]):
        return None
    lowest, highest = first - (rows - 1), last - (rows - 1)
    open_left, open_right = first == 0, last == len(diagonals) - 1
    if open_left:
        return _EVERYTHING if open_right else Band(UNBOUNDED, 0, highest)
    if open_right:
        return Band(0, UNBOUNDED, lowest)
    return Band(highest - lowest, 0, highest)
