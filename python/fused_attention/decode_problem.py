"""DecodeProblem: one step of decoding as plain numbers, and the checks of its arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention import checks
from fused_attention.masks import Band

PREFILL = 16  # queries from which on a plain cache is better read by `attention`


class DecodeProblem(NamedTuple):
    """Shapes, dtypes and features of one step of decoding; holds no tensor and prints itself."""

    dtype: torch.dtype
    device_type: str
    batch: int
    heads_q: int
    heads_kv: int
    len_q: int
    capacity: int  # keys that a sequence may have
    head_dim: int
    value_dim: int
    page_size: int = 0  # 0: the cache is contiguous
    len_new: int = 0  # keys that are stored before attending
    rotary_dim: int = 0  # 0: none
    band: Band = Band.causal()  # from each sequence's own diagonal
    scale: float = 1.0
    softcap: float = 0.0  # 0: none
    splits: int = 0  # 0: the backend decides
    batch_invariant: bool = False
    has_alibi: bool = False
    has_sinks: bool = False
    has_cache_batch: bool = False
    has_cache_starts: bool = False

    @classmethod
    def from_tensors(
        cls,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        *,
        key: Tensor | None,
        value: Tensor | None,
        cache_lengths: int | Tensor,
        cache_batch: Tensor | None,
        cache_starts: Tensor | None,
        block_table: Tensor | None,
        rotary_cos: Tensor | None,
        rotary_sin: Tensor | None,
        band: Band,
        scale: float | None,
        softcap: float,
        alibi_slopes: Tensor | None,
        sinks: Tensor | None,
        splits: int | None,
        batch_invariant: bool,
    ) -> DecodeProblem:
        """Check everything but the numbers inside tensors; arguments as `attention_with_kv_cache`.

        Raises:
            TypeError: an argument has a wrong type or dtype.
            ValueError: an argument has a wrong device, shape, layout or value.
        """
        checks.check_operands(query, key_cache, value_cache, 4, _CACHE_NAMES)
        batch, heads_q, len_q, dim_q = query.shape
        _, heads_kv, rows, dim_k = key_cache.shape
        _, heads_v, rows_v, value_dim = value_cache.shape
        if value_cache.shape[0] != key_cache.shape[0]:
            rule = f"must have key_cache's first dimension {key_cache.shape[0]}"
            checks.wrong_value("value_cache", rule, value_cache.shape[0])
        checks.check_heads(batch, heads_q, heads_kv, heads_v, _CACHE_NAMES)
        checks.check_dims(len_q, rows, rows_v, dim_q, dim_k, value_dim, _CACHE_NAMES)
        scale = dim_q**-0.5 if scale is None else scale
        scale, softcap, _ = checks.check_scalars(scale, softcap, 0.0)
        device = query.device
        if not isinstance(cache_lengths, int):
            checks.check_integers("cache_lengths", cache_lengths, device, batch)
        for name, numbers in (("cache_batch", cache_batch), ("cache_starts", cache_starts)):
            if numbers is not None:
                checks.check_integers(name, numbers, device, batch)
        capacity = _check_rows(key_cache, batch, cache_batch, block_table)
        len_new = _check_new(query, key_cache, value_cache, key, value)
        rotary_dim = _check_rotary(query, key, rotary_cos, rotary_sin)
        if band.offset is not None:
            rule = "its offset must be None (the diagonal of a sequence ends at its last key)"
            checks.wrong_value("band", rule, band.offset)
        if alibi_slopes is not None:
            checks.check_alibi(alibi_slopes, device, batch, heads_q)
        if sinks is not None:
            checks.check_sinks(sinks, device, heads_q)
        return cls(
            query.dtype,
            device.type,
            batch,
            heads_q,
            heads_kv,
            len_q,
            capacity,
            dim_q,
            value_dim,
            0 if block_table is None else rows,
            len_new,
            rotary_dim,
            band,
            scale,
            softcap,
            _check_splits(splits, batch_invariant),
            batch_invariant,
            alibi_slopes is not None,
            sinks is not None,
            cache_batch is not None,
            cache_starts is not None,
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        fields = self._asdict()
        fields["dtype"] = str(self.dtype).removeprefix("torch.")
        fields["band"] = {"left": self.band.left, "right": self.band.right}
        return fields

    def __str__(self) -> str:
        parts = [
            f"{str(self.dtype).removeprefix('torch.')} on {self.device_type}, decoding",
            f"B={self.batch} H={self.heads_q}/{self.heads_kv} Lq={self.len_q} "
            f"capacity={self.capacity} D={self.head_dim}/{self.value_dim}",
            f"band {self.band}",
            f"scale {self.scale:.6g}",
        ]
        numbers = {
            "pages of": self.page_size,
            "new keys": self.len_new,
            "rotary_dim": self.rotary_dim,
            "softcap": self.softcap,
            "splits": self.splits,
        }
        flags = {
            "batch_invariant": self.batch_invariant,
            "ALiBi": self.has_alibi,
            "sinks": self.has_sinks,
            "cache_batch": self.has_cache_batch,
            "cache_starts": self.has_cache_starts,
        }
        parts += [f"{name} {number:g}" for name, number in numbers.items() if number]
        return ", ".join(parts + [name for name, present in flags.items() if present])


_CACHE_NAMES = ("query", "key_cache", "value_cache")


def _check_rows(key_cache: Tensor, batch: int, cache_batch: Tensor | None, block_table: Any) -> int:
    """Whether each sequence has its place in the cache; the keys that fit there."""
    if block_table is None:
        if cache_batch is None and key_cache.shape[0] < batch:
            rule = f"must have a row for each of the {batch} sequences"
            checks.wrong_value("key_cache", rule, key_cache.shape[0])
        return key_cache.shape[2]
    checks.check_tensor("block_table", block_table)
    if block_table.dtype not in checks.INTEGER_DTYPES:
        checks.wrong_type("block_table", "must be an integer tensor", block_table.dtype)
    if block_table.device != key_cache.device:
        rule = f"must be on query's device {key_cache.device}"
        checks.wrong_value("block_table", rule, block_table.device)
    if block_table.dim() != 2 or block_table.shape[0] != batch:
        rule = f"must have shape [batch, pages of a sequence] = [{batch}, ...]"
        checks.wrong_value("block_table", rule, f"shape {checks.shape_of(block_table)}")
    if cache_batch is not None:
        checks.wrong_value("cache_batch", "cannot be used with a block_table", "both")
    if key_cache.shape[2] < 1:
        checks.wrong_value("key_cache", "its pages must have rows", 0)
    capacity: int = key_cache.shape[2] * block_table.shape[1]
    return capacity


def _check_new(query: Tensor, key_cache: Tensor, value_cache: Tensor, key: Any, value: Any) -> int:
    """Whether the new keys and values fit the query and the caches; how many there are."""
    if (key is None) != (value is None):
        checks.wrong_value("key" if key is None else "value", "needs the other one too", None)
    if key is None:
        return 0
    for name, new, cache in (("key", key, key_cache), ("value", value, value_cache)):
        checks.check_tensor(name, new)
        if new.dtype != query.dtype:
            checks.wrong_type(name, f"must have query's dtype {query.dtype}", new.dtype)
        if new.device != query.device:
            checks.wrong_value(name, f"must be on query's device {query.device}", new.device)
        want = (query.shape[0], cache.shape[1], key.shape[2] if key.dim() == 4 else 0)
        if new.dim() != 4 or tuple(new.shape[:3]) != want or new.shape[3] != cache.shape[3]:
            rule = f"must have shape [{want[0]}, {want[1]}, new, {cache.shape[3]}], new as key's"
            checks.wrong_value(name, rule, f"shape {checks.shape_of(new)}")
        if new.stride(-1) != 1 and new.shape[-1] > 1 and new.numel():
            got = f"stride {new.stride(-1)}"
            checks.wrong_value(name, "must be contiguous in its last dimension", got)
        shared = (n > 1 and step == 0 for n, step in zip(cache.shape, cache.stride(), strict=True))
        if any(shared):
            rule = "must not be expanded where new keys are stored in it"
            checks.wrong_value(f"{name}_cache", rule, f"strides {tuple(cache.stride())}")
    len_new: int = key.shape[2]
    return len_new


def _check_rotary(query: Tensor, key: Any, cos: Any, sin: Any) -> int:
    """Whether the tables can turn queries and new keys; the rotated dimensions."""
    if cos is None and sin is None:
        return 0
    for name, table in (("rotary_cos", cos), ("rotary_sin", sin)):
        if table is None:
            checks.wrong_value(name, "rotary_cos and rotary_sin must be given together", None)
        checks.check_tensor(name, table)
        if table.dtype not in checks.FLOATING_DTYPES:
            checks.wrong_type(name, "must be floating point", table.dtype)
        if table.device != query.device:
            checks.wrong_value(name, f"must be on query's device {query.device}", table.device)
        if table.dim() != 2 or table.shape != cos.shape or 2 * table.shape[1] > query.shape[3]:
            rule = f"must have shape [positions, rotary_dim / 2], rotary_dim <= {query.shape[3]}"
            checks.wrong_value(name, rule, f"shape {checks.shape_of(table)}")
    if key is None:
        checks.wrong_value("rotary_cos", "needs key and value, whose positions it turns", None)
    rotary_dim: int = 2 * cos.shape[1]
    return rotary_dim


def _check_splits(splits: Any, batch_invariant: bool) -> int:
    if splits is None:
        return 0
    checks.check_unsigned("splits", splits, 16)
    if batch_invariant and splits:
        rule = "must be None with batch_invariant, which fixes the size of a part"
        checks.wrong_value("splits", rule, splits)
    return int(splits)
