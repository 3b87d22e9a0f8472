"""Facts about weights, one block of queries after the other: memory that is linear in the length.

For attentions that have no kernel of their own for it. Plain torch, on any device.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention import checks
from fused_attention.maps.problem import check_asked, check_indices, chosen_indices
from fused_attention.maps.reference import maps_of_scores
from fused_attention.maps.results import AttentionMaps

BLOCK_BYTES = 1 << 23  # of the largest tensor of a block, where it has more than one query

Scores = Callable[[int, int], tuple[Tensor, int]]
"""Of the queries [begin, end): scores [B, H, queries, keys] and the first of these keys.

A weight is exp(score - lse). Hidden keys have -inf; keys that are left out are hidden to all."""


class Asked(NamedTuple):
    """What is wanted, checked; see AttentionMaps."""

    rows: Tensor | None
    heads: Tensor | None
    column_mass: bool
    column_mean: bool
    entropy: bool
    argmax: bool
    top_k: int

    @classmethod
    def of(
        cls,
        query: Tensor,
        rows: Sequence[int] | Tensor | None,
        heads: Sequence[int] | Tensor | None,
        flags: tuple[bool, bool, bool, bool],
        top_k: int,
    ) -> Asked:
        """Check the choice; query is [B, H, Lq, D].

        Raises:
            TypeError: an argument has a wrong type.
            ValueError: an argument has a wrong value, or nothing was asked for.
        """
        checks.check_unsigned("top_k", top_k, 30)
        count_heads, count_rows = query.shape[1], query.shape[2]
        chosen_heads = chosen_indices("heads", heads, count_heads, query.device)
        chosen_rows = chosen_indices("rows", rows, count_rows, query.device)
        check_asked(chosen_rows, *flags, top_k)
        check_indices("heads", chosen_heads, count_heads)
        check_indices("rows", chosen_rows, count_rows)
        return cls(chosen_rows, chosen_heads, *flags, top_k)

    def of_heads(self, tensor: Tensor, group: int = 1) -> Tensor:
        """The chosen heads of [B, H / group, ...]."""
        if self.heads is None:
            return tensor
        return tensor.index_select(1, self.heads // group)

    @property
    def of_all_rows(self) -> bool:
        """Whether anything needs every query."""
        return any(self[2:])


def keys_from(first: int, key_lengths: Tensor | None) -> Tensor | None:
    """key_lengths [B] where the keys before the first are left out."""
    return None if key_lengths is None else (key_lengths - first).clamp(min=0)


def maps_in_blocks(
    scores: Scores, lse: Tensor, len_k: int, asked: Asked, row_bytes: int
) -> AttentionMaps:
    """What is asked for about exp(scores - lse).

    Args:
        scores: see there; of the chosen heads.
        lse: [B, H, Lq], of the chosen heads.
        len_k: number of keys.
        asked: what is wanted.
        row_bytes: of the largest tensor that scores makes of one query; blocks have as many queries
            as fit in BLOCK_BYTES, at least one.
    """
    found = _unwritten(lse, len_k, asked)
    seen = lse.new_zeros((*lse.shape[:2], len_k), dtype=torch.int64)
    chosen = sorted((row, n) for n, row in enumerate(_numbers(asked.rows)))
    only = None if asked.of_all_rows else [row for row, _ in chosen]
    size = max(1, BLOCK_BYTES // max(1, row_bytes))
    for begin, end in _blocks(lse.shape[-1], size, only):
        block, first = scores(begin, end)
        keys = slice(first, first + block.shape[-1])
        here = chosen[bisect_left(chosen, (begin, -1)) : bisect_left(chosen, (end, -1))]
        part = maps_of_scores(
            *(block, lse[..., begin:end]),
            rows=torch.tensor([row - begin for row, _ in here], device=block.device).long(),
            column_mass=found.column_mass is not None,
            entropy=asked.entropy,
            argmax=asked.argmax,
            top_k=asked.top_k,
        )
        _write(found, part, slice(begin, end), keys, [n for _, n in here])
        if asked.column_mean:
            seen[..., keys] += (block != -torch.inf).sum(dim=-2)
    if asked.column_mean:
        assert found.column_mass is not None
        found = found._replace(column_mean=found.column_mass / seen.clamp(min=1))
    return found if asked.column_mass else found._replace(column_mass=None)


def _unwritten(lse: Tensor, len_k: int, asked: Asked) -> AttentionMaps:
    """Zeros where blocks add up or leave out keys."""
    leading, top = lse.shape[:2], (*lse.shape, asked.top_k)
    mass = asked.column_mass or asked.column_mean
    return AttentionMaps(
        weights=None
        if asked.rows is None
        else lse.new_zeros((*leading, asked.rows.shape[0], len_k)),
        column_mass=lse.new_zeros((*leading, len_k)) if mass else None,
        entropy=torch.empty_like(lse) if asked.entropy else None,
        argmax=torch.empty_like(lse, dtype=torch.int64) if asked.argmax else None,
        top_weights=lse.new_empty(top) if asked.top_k else None,
        top_indices=lse.new_empty(top, dtype=torch.int64) if asked.top_k else None,
    )


def _write(
    found: AttentionMaps, part: AttentionMaps, queries: slice, keys: slice, places: list[int]
) -> None:
    """A block's facts, whose keys count from the first of its own, to their places."""
    if found.weights is not None and places:
        assert part.weights is not None
        found.weights[:, :, places, keys] = part.weights
    if found.column_mass is not None and part.column_mass is not None:
        found.column_mass[..., keys] += part.column_mass
    if found.entropy is not None and part.entropy is not None:
        found.entropy[:, :, queries] = part.entropy
    if found.argmax is not None and part.argmax is not None:
        found.argmax[:, :, queries] = _counted_from(keys.start, part.argmax)
    if found.top_indices is not None and part.top_indices is not None:
        found.top_indices[:, :, queries] = _counted_from(keys.start, part.top_indices)
    if found.top_weights is not None and part.top_weights is not None:
        found.top_weights[:, :, queries] = part.top_weights


def _counted_from(first: int, indices: Tensor) -> Tensor:
    return torch.where(indices < 0, indices, indices + first)


def _numbers(indices: Tensor | None) -> list[int]:
    numbers: list[int] = [] if indices is None else indices.tolist()
    return numbers


def _blocks(count: int, size: int, only: list[int] | None) -> Iterator[tuple[int, int]]:
    """Runs [begin, end) of at most `size` of the `count` queries, or of some of them, sorted."""
    if only is None:
        yield from ((begin, min(begin + size, count)) for begin in range(0, count, size))
        return
    begin = end = 0
    for row in only:
        if row == end and end - begin < size and begin < end:
            end = row + 1
        elif row >= end:
            if begin < end:
                yield begin, end
            begin, end = row, row + 1
    if begin < end:
        yield begin, end
