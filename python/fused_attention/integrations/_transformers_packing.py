"""Sequences of unequal length in one batch, as what attention_varlen takes.

A batch [batch, length] is flattened, row by row; nothing is copied for it where the rows already
lie one after the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import masking_utils

from fused_attention.integrations._transformers_bands import MaskFunction, band_of
from fused_attention.masks import Band


class Segments(NamedTuple):
    """Where the sequences of a flattened batch begin and end.

    Attributes:
        cu_seqlens_q: int32 [sequences + 1].
        cu_seqlens_k: the same for the keys; None: cu_seqlens_q.
        max_seqlen_q: the longest sequence or more; None: not known.
        max_seqlen_k: the same for the keys.
        band_offsets: int32 [sequences], of the band; None: 0.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    band_offsets: Tensor | None = None

    def to(self, device: torch.device) -> Segments:
        moved: dict[str, Any] = {
            name: x.to(device) for name, x in self._asdict().items() if isinstance(x, Tensor)
        }
        return self._replace(**moved)


class Packing(NamedTuple):
    """Packed sequences and the band within each of them."""

    segments: Segments
    band: Band


def without_padding(
    begins: Sequence[int], ends: Sequence[int], length: int, device: torch.device
) -> Segments:
    """Each row as three sequences: padding, the tokens [begin, end), padding.

    For bands that end at the diagonal. The band of a padding sequence is moved so far that it
    holds no key, so the kernels write zeros for its rows and compute nothing.
    """
    cu_seqlens, offsets = [0], []
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        cu_seqlens += [row * length + position for position in (begin, end, length)]
        offsets += [-length, 0, -length]
    return Segments(
        torch.tensor(cu_seqlens, dtype=torch.int32, device=device),
        max_seqlen_q=length,
        band_offsets=torch.tensor(offsets, dtype=torch.int32, device=device),
    )


def find_packing(mask_function: MaskFunction) -> Packing | None:
    """The sequences that position_ids start anew, and the band within each; None if it is no such.

    transformers ANDs the mask function of a model with one that compares sequence numbers
    [batch, length]. Both are read off the closures that it builds, recognised by their code.
    """
    if not _is(mask_function, _AND):
        return None
    numbers, bands = [], []
    for part in _variable(mask_function, "mask_functions", ()):
        if _is(part, _SAME_SEQUENCE):
            numbers.append(_variable(part, "packed_sequence_mask", None))
        else:
            # Positions within a sequence are consecutive, so a band means the same in both counts.
            inner = _variable(part, "mask_function", part) if _is(part, _REMAPPED) else part
            bands.append(band_of(inner))
    if len(numbers) != 1 or len(bands) != 1 or not isinstance(numbers[0], Tensor):
        return None
    return None if bands[0] is None else Packing(_segments(numbers[0]), bands[0])


def _segments(numbers: Tensor) -> Segments:
    """A sequence begins with each row and wherever the number changes."""
    starts = torch.ones_like(numbers, dtype=torch.bool)
    starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    begins = starts.flatten().nonzero().squeeze(1)
    cu_seqlens = torch.nn.functional.pad(begins, (0, 1), value=numbers.numel()).to(torch.int32)
    return Segments(cu_seqlens, max_seqlen_q=int(cu_seqlens.diff().max()))


def _code_of(build: str, *arguments: object) -> CodeType | None:
    """The code of what transformers' function `build` returns; None if this version has none."""
    builder: Callable[..., MaskFunction] | None = getattr(masking_utils, build, None)
    return None if builder is None else builder(*arguments).__code__


_AND = _code_of("and_masks")
_SAME_SEQUENCE = _code_of("packed_sequence_mask_function", None)
_REMAPPED = _code_of("remap_positions_for_packed_sequence", None, None)


def _is(function: MaskFunction, code: CodeType | None) -> bool:
    return code is not None and getattr(function, "__code__", None) is code


def _variable(function: MaskFunction, name: str, default: Any) -> Any:
    """What `function` has captured under this name."""
    return inspect.getclosurevars(function).nonlocals.get(name, default)
