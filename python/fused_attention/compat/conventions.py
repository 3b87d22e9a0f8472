"""What flash-attn calls things, in this package's terms: layouts, windows, random state.

flash-attn's tensors are [batch, seqlen, heads, head_dim] and its windows (left, right) with -1 for
unbounded; both become views and a Band here, nothing is copied.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fused_attention.masks import UNBOUNDED, Band

Window = Sequence[int] | Tensor
DENSE = "[batch, seqlen, heads, head_dim]"
PACKED = "[total, heads, head_dim]"

_FULL = Band.full()
_CAUSAL = Band.causal()


def wrong_shape(argument: str, layout: str, tensor: Any) -> NoReturn:
    got = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
    raise ValueError(f"{argument}: must be a tensor {layout}, got {got}")


def last_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself; a copy only where its last dimension is strided, as the original does."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def heads_first(argument: str, tensor: Tensor) -> Tensor:
    """[batch, seqlen, heads, head_dim] as a [batch, heads, seqlen, head_dim] view."""
    if not isinstance(tensor, Tensor) or tensor.dim() != 4:
        wrong_shape(argument, DENSE, tensor)
    return last_contiguous(tensor).transpose(1, 2)


def packed(argument: str, tensor: Tensor) -> Tensor:
    """[total, heads, head_dim], checked."""
    if not isinstance(tensor, Tensor) or tensor.dim() != 3:
        wrong_shape(argument, PACKED, tensor)
    return last_contiguous(tensor)


def split_stack(argument: str, tensor: Tensor, layout: str) -> tuple[Tensor, ...]:
    """The parts of [..., parts, heads, head_dim] as views.

    Args:
        layout: names of the dimensions; the third from the end is the number of parts.
    """
    names = layout.strip("[]").split(", ")
    rank_fits = isinstance(tensor, Tensor) and tensor.dim() == len(names)
    if not rank_fits or tensor.shape[-3] != int(names[-3]):
        wrong_shape(argument, layout, tensor)
    return tensor.unbind(-3)


def band_of(causal: bool, window_size: Window) -> Band:
    """The band of flash-attn's causal and window_size.

    Both ends of a window are inclusive, a negative one is unbounded, causal replaces the right one
    by 0, and the diagonal ends at the last query and the last key.

    Raises:
        ValueError: window_size is no pair.
        TypeError: an end is no integer.
    """
    if len(window_size) != 2:
        raise ValueError(f"window_size: must be a pair (left, right), got {window_size}")
    left, right = map(_reach, window_size)
    if left == UNBOUNDED and right == UNBOUNDED:
        return _CAUSAL if causal else _FULL
    return Band(left, 0 if causal else right)


def _reach(end: Any) -> int:
    try:
        # Tensors and NumPy's integers are welcome; an int is what torch.compile follows.
        keys = end if type(end) is int else operator.index(end)
    except TypeError:
        raise TypeError(f"window_size: must hold two ints (-1: unbounded), got {end!r}") from None
    return UNBOUNDED if keys < 0 else min(keys, UNBOUNDED)


def as_int(length: Any) -> int | None:
    """max_seqlen as an int; a tensor of one integer is accepted, at the price of reading it."""
    return int(length) if isinstance(length, Tensor) else length


def draw_rng_state(device: torch.device) -> Tensor:
    """Seed and offset of a dropout mask, int64 [2], from torch's generator of the device.

    It is what `attention` draws when it is given no seed, so asking for the mask (which needs the
    state) does not change it.
    """
    return torch.randint(0, 1 << 32, (2,), dtype=torch.int64, device=device)


def can_read(tensor: Tensor) -> bool:
    """Whether reading numbers out of the tensor is free: on the CPU, and not while compiling."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def packed_places(total: int, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The sequence of each packed row (beyond the last one: their number) and its place there."""
    row = torch.arange(total, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), row, right=True)
    return sequence, row - cu_seqlens[sequence]
