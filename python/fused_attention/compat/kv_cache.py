"""A cache of keys and values, plain or paged: where its tokens are, and how new ones get there.

A plain cache is read where it lies. Pages, and rows chosen by cache_batch_idx, are gathered first:
those that are in use where their number can be read for free (on the CPU), else all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fused_attention.checks import check_integers, wrong_type, wrong_value
from fused_attention.compat.conventions import can_read, packed_places, wrong_shape

Lengths = int | Tensor | None


class Cache(NamedTuple):
    """A cache and how the sequences of a batch lie in it."""

    key: Tensor  # [rows, capacity, heads_k, head_dim]; paged [pages, page_size, ...]
    value: Tensor
    lengths: Lengths  # tokens cached per sequence, int [batch]; None: every row is full
    batch_idx: Tensor | None = None  # int [batch], row of each sequence; None: 0, 1, 2, ...
    leftpad: Tensor | None = None  # int [batch], where each sequence begins; None: 0
    table: Tensor | None = None  # int [rows, pages], the pages of each row in order
    table_name: str = "block_table"  # what the caller calls it

    @property
    def capacity(self) -> int:
        """How many tokens a sequence may have."""
        size = self.key.shape[1]
        return size if self.table is None else size * self.table.shape[1]


class NewTokens(NamedTuple):
    """What is appended to the cache."""

    key: Tensor  # [batch, seqlen, heads_k, head_dim]; with cu_seqlens [total, heads_k, head_dim]
    value: Tensor
    cu_seqlens: Tensor | None = None  # int [batch + 1]

    @classmethod
    def of(
        cls, key: Tensor | None, value: Tensor | None, cu_seqlens: Tensor | None = None
    ) -> NewTokens | None:
        """The new tokens, or None where there are none."""
        if key is None and value is None:
            return None
        if key is None or value is None:
            wrong_value("k" if key is None else "v", "k and v must be given together", None)
        return cls(key, value, cu_seqlens)

    def lengths(self) -> int | Tensor:
        """How many there are of each sequence."""
        return self.key.shape[1] if self.cu_seqlens is None else self.cu_seqlens.diff()


def append(cache: Cache, new: NewTokens, lengths: int | Tensor) -> None:
    """Write the new keys and values behind the `lengths` tokens that are cached."""
    key, value = new.key, new.value
    plain = cache.table is None and cache.batch_idx is None
    if plain and new.cu_seqlens is None and isinstance(lengths, int):
        rows = slice(key.shape[0]), slice(lengths, lengths + key.shape[1])
        cache.key[rows], cache.value[rows] = key, value
        return
    if new.cu_seqlens is None:
        sequence = torch.arange(len(key), device=key.device)[:, None]
        place = torch.arange(key.shape[1], device=key.device)
    else:
        if can_read(new.cu_seqlens):  # elsewhere no token may lie beyond the last sequence
            used = int(new.cu_seqlens[-1])
            key, value = key[:used], value[:used]
        sequence, place = packed_places(len(key), new.cu_seqlens)
    slot = place + (lengths[sequence] if isinstance(lengths, Tensor) else lengths)
    row = sequence if cache.batch_idx is None else cache.batch_idx[sequence]
    if cache.table is not None:
        page_size = cache.key.shape[1]
        row, slot = cache.table[row, slot // page_size], slot % page_size
    cache.key[row, slot], cache.value[row, slot] = key, value


def read_lengths(cache: Cache, lengths: Lengths) -> list[int]:
    """The lengths, one for all or one for each sequence; empty where they cannot be read."""
    if isinstance(lengths, Tensor):
        return lengths.tolist() if can_read(lengths) else []
    return [cache.capacity if lengths is None else lengths]


def one_length(lengths: Lengths, numbers: list[int]) -> Lengths:
    """The lengths as an int if all sequences are known to have the same: then views will do."""
    if isinstance(lengths, Tensor) and numbers and min(numbers) == max(numbers):
        return numbers[0]
    return lengths


def longest(cache: Cache, numbers: list[int]) -> int:
    """Length of the longest sequence, the capacity where it cannot be read, if all of them fit.

    Args:
        numbers: see `read_lengths`.

    Raises:
        RuntimeError: a sequence is longer than its pages, as in the original.
        ValueError: a sequence is longer than a row of the cache, or shorter than its padding.
    """
    shortest, most = min(numbers, default=0), max(numbers, default=cache.capacity)
    if most > cache.capacity and cache.table is not None:
        pages, size = cache.table.shape[1], cache.key.shape[1]
        holds = f"{pages} pages of {size} tokens hold {cache.capacity} of a sequence"
        raise RuntimeError(f"{cache.table_name}: {holds}, got cache_seqlens up to {most}")
    if most > cache.capacity or shortest < 0:
        rule = f"with the new tokens must be in [0, {cache.capacity}], the cache's length"
        wrong_value("cache_seqlens", rule, most if most > cache.capacity else shortest)
    if cache.leftpad is not None and can_read(cache.leftpad):
        padding = cache.leftpad.tolist()
        ends = numbers if len(numbers) == len(padding) else numbers * len(padding)
        if any(not 0 <= pad <= end for pad, end in zip(padding, ends, strict=True)):
            wrong_value("cache_leftpad", "must be in [0, length of its sequence]", padding)
    return most


def cached_rows(
    cache: Cache, lengths: Lengths, most: int, batch: int, cut: bool
) -> tuple[Tensor, Tensor]:
    """Key and value [batch, tokens, heads_k, head_dim] of each sequence.

    Args:
        lengths: tokens per sequence by now; None is all.
        most: how many tokens the longest has.
        cut: whether to shorten the rows to that, as views.
    """
    if cache.table is not None:
        table = cache.table[:batch] if cache.batch_idx is None else cache.table[cache.batch_idx]
        pages = check_pages(cache, table, lengths, most)
        key, value = cache.key[pages].flatten(1, 2), cache.value[pages].flatten(1, 2)
    elif cache.batch_idx is not None:
        key = cache.key[:, :most][cache.batch_idx]
        value = cache.value[:, :most][cache.batch_idx]
    else:
        key, value = cache.key, cache.value
        if key.shape[0] > batch:
            key, value = key[:batch], value[:batch]
    if cut and key.shape[1] > most:
        key, value = key[:, :most], value[:, :most]
    return key, value


def check_pages(cache: Cache, table: Tensor, lengths: Lengths, most: int) -> Tensor:
    """The pages [batch, n] that hold `most` tokens; page 0 where a sequence is shorter.

    Raises:
        ValueError: a page that is in use does not exist.
    """
    page_size = cache.key.shape[1]
    table = table[:, : -(-most // page_size)]
    if isinstance(lengths, Tensor):
        begin = torch.arange(table.shape[1], device=table.device) * page_size
        table = torch.where(begin < lengths[:, None], table, 0)
    if table.numel() and can_read(table):
        low, high = int(table.min()), int(table.max())
        if low < 0 or high >= len(cache.key):
            rule = f"the pages in use must be in [0, {len(cache.key)})"
            wrong_value(cache.table_name, rule, low if low < 0 else high)
    return table


def check_cache(cache: Cache, batch: int) -> None:
    """Shapes and dtypes of a cache for so many sequences."""
    layout = "[rows, seqlen, heads_k, head_dim]"
    if cache.table is not None:
        layout = "[pages, page_size, heads_k, head_dim]"
    key, value = cache.key, cache.value
    if key.dim() != 4:
        wrong_shape("k_cache", layout, key)
    if value.dim() != 4 or value.shape[:3] != key.shape[:3]:
        wrong_shape("v_cache", layout, value)
    for name, tensor in (("k_cache", key), ("v_cache", value)):
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1 and tensor.numel():
            got = f"stride {tensor.stride(-1)}"
            wrong_value(name, "must be contiguous in its last dimension", got)
    integers = {"cache_batch_idx": cache.batch_idx, "cache_leftpad": cache.leftpad}
    if not isinstance(cache.lengths, int):
        integers["cache_seqlens"] = cache.lengths
    for name, numbers in integers.items():
        if numbers is not None:
            check_integers(name, numbers, cache.key.device, batch)
    if cache.table is not None and cache.table.dim() != 2:
        wrong_shape(cache.table_name, "[batch, pages of a sequence]", cache.table)
    rows = (cache.key if cache.table is None else cache.table).shape[0]
    if cache.batch_idx is None and rows < batch:
        name = "k_cache" if cache.table is None else cache.table_name
        wrong_value(name, f"must have a row for each of the {batch} sequences", rows)


def check_new(new: NewTokens, cache: Cache, batch: int) -> None:
    """Whether the new tokens belong to the cache."""
    if cache.lengths is None:
        wrong_value("cache_seqlens", "must say where k and v are to be written", None)
    packed = new.cu_seqlens is not None
    layout = "[total, heads_k, head_dim]" if packed else "[batch, seqlen_new, heads_k, head_dim]"
    for name, tensor, into in (("k", new.key, cache.key), ("v", new.value, cache.value)):
        fits = tensor.dim() == (3 if packed else 4) and tensor.shape[-2:] == into.shape[-2:]
        if not fits or not (packed or tensor.shape[0] == batch):
            wrong_shape(name, f"{layout} that fits a cache {tuple(into.shape)}", tensor)
        if tensor.dtype != into.dtype:
            wrong_type(name, f"must have its cache's dtype {into.dtype}", tensor.dtype)
