"""Problem: one attention call as plain numbers, which is all that choosing a backend needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention import checks
from fused_attention.masks import Band


class Problem(NamedTuple):
    """Shapes, dtypes and features of one attention call; holds no tensor and prints itself.

    `Problem.from_tensors` is the only place where arguments are checked; build one by hand (or
    with `_replace`) to ask a question without tensors.
    """

    dtype: torch.dtype
    device_type: str
    batch: int  # packed: number of sequences
    heads_q: int
    heads_kv: int
    len_q: int  # packed: the longest sequence's, or a bound of it
    len_k: int
    head_dim: int
    value_dim: int
    packed: bool = False
    band: Band = Band()  # as given: an offset of None is still Lk - Lq
    scale: float = 1.0
    softcap: float = 0.0  # 0: none
    dropout_p: float = 0.0
    bias_shape: tuple[int, ...] | None = None
    bias_dtype: torch.dtype | None = None
    bias_needs_grad: bool = False
    has_alibi: bool = False
    has_sinks: bool = False
    has_kv_lengths: bool = False
    has_band_offsets: bool = False
    needs_grad: bool = False
    deterministic: bool = False

    @classmethod
    def from_tensors(
        cls,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        band: Band,
        scale: float | None = None,
        softcap: float = 0.0,
        bias: Tensor | None = None,
        alibi_slopes: Tensor | None = None,
        sinks: Tensor | None = None,
        dropout_p: float = 0.0,
        kv_lengths: Tensor | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        band_offsets: Tensor | None = None,
        deterministic: bool = False,
    ) -> Problem:
        """Check the arguments and describe the call.

        Args:
            query: [B, Hq, Lq, D], packed (cu_seqlens_q given) [Tq, Hq, D].
            key: [B, Hkv, Lk, D], packed [Tk, Hkv, D].
            value: [B, Hkv, Lk, Dv], packed [Tk, Hkv, Dv].
            scale: None is 1 / sqrt(D).

        The others are those of `attention` and `attention_varlen`.

        Raises:
            TypeError: an argument has a wrong type or dtype.
            ValueError: an argument has a wrong device, shape, layout or value.
        """
        packed = cu_seqlens_q is not None
        checks.check_operands(query, key, value, 3 if packed else 4)
        if packed:
            sizes = _packed_sizes(query, key, value, cu_seqlens_q, cu_seqlens_k)
        else:
            sizes = dense_sizes(query, key, value)
        batch, heads_q, heads_kv, len_q, len_k, head_dim, value_dim = sizes
        if packed:
            len_q = _longest("max_seqlen_q", max_seqlen_q, len_q)
            len_k = _longest("max_seqlen_k", max_seqlen_k, len_k)
        if scale is None:
            scale = head_dim**-0.5
        scale, softcap, dropout_p = checks.check_scalars(scale, softcap, dropout_p)
        device = query.device
        if bias is not None:
            if packed:
                checks.wrong_value("bias", "cannot be used with packed sequences", "both")
            checks.check_bias(bias, device, batch, heads_q, len_q, len_k)
        if alibi_slopes is not None:
            checks.check_alibi(alibi_slopes, device, batch, heads_q)
        if sinks is not None:
            checks.check_sinks(sinks, device, heads_q)
        if kv_lengths is not None:
            if packed:
                checks.wrong_value("kv_lengths", "cannot be used with packed sequences", "both")
            checks.check_integers("kv_lengths", kv_lengths, device, batch)
        if band_offsets is not None:
            checks.check_integers("band_offsets", band_offsets, device, batch)
        bias_needs_grad = bias is not None and bias.requires_grad
        needs_grad = torch.is_grad_enabled() and (
            query.requires_grad
            or key.requires_grad
            or value.requires_grad
            or bias_needs_grad
            or (sinks is not None and sinks.requires_grad)
        )
        return cls(
            query.dtype,
            device.type,
            batch,
            heads_q,
            heads_kv,
            len_q,
            len_k,
            head_dim,
            value_dim,
            packed,
            band,
            scale,
            softcap,
            dropout_p,
            None if bias is None else tuple(bias.shape),
            None if bias is None else bias.dtype,
            needs_grad and bias_needs_grad,
            alibi_slopes is not None,
            sinks is not None,
            kv_lengths is not None,
            band_offsets is not None,
            needs_grad,
            deterministic or torch.are_deterministic_algorithms_enabled(),
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        fields = self._asdict()
        fields["dtype"] = _dtype_name(self.dtype)
        fields["bias_dtype"] = None if self.bias_dtype is None else _dtype_name(self.bias_dtype)
        fields["band"] = asdict(self.band)
        return fields

    def __str__(self) -> str:
        heads = one_or_both(self.heads_q, self.heads_kv)
        dims = one_or_both(self.head_dim, self.value_dim)
        parts = [
            f"{_dtype_name(self.dtype)} on {self.device_type}",
            f"{'packed ' if self.packed else ''}B={self.batch} H={heads} Lq={self.len_q} "
            f"Lk={self.len_k} D={dims}",
            f"band {self.band}",
            f"scale {self.scale:.6g}",
        ]
        if self.softcap:
            parts.append(f"softcap {self.softcap:g}")
        if self.bias_shape is not None:
            assert self.bias_dtype is not None
            grad = " with gradient" if self.bias_needs_grad else ""
            parts.append(f"bias {_dtype_name(self.bias_dtype)} {list(self.bias_shape)}{grad}")
        if self.dropout_p:
            parts.append(f"dropout {self.dropout_p:g}")
        flags = {
            "ALiBi": self.has_alibi,
            "sinks": self.has_sinks,
            "kv_lengths": self.has_kv_lengths,
            "band_offsets": self.has_band_offsets,
            "gradient": self.needs_grad,
            "deterministic": self.deterministic,
        }
        return ", ".join(parts + [name for name, present in flags.items() if present])


def dense_sizes(
    query: Tensor, key: Tensor, value: Tensor
) -> tuple[int, int, int, int, int, int, int]:
    """batch, heads_q, heads_kv, len_q, len_k, head_dim, value_dim of a checked dense batch."""
    batch, heads_q, len_q, dim_q = query.shape
    batch_k, heads_k, len_k, dim_k = key.shape
    batch_v, heads_v, len_v, dim_v = value.shape
    if batch_k != batch:
        checks.wrong_value("key", f"must have query's batch {batch}", batch_k)
    if batch_v != batch:
        checks.wrong_value("value", f"must have query's batch {batch}", batch_v)
    checks.check_heads(batch, heads_q, heads_k, heads_v)
    checks.check_dims(len_q, len_k, len_v, dim_q, dim_k, dim_v)
    return batch, heads_q, heads_k, len_q, len_k, dim_q, dim_v


def _packed_sizes(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Any, cu_seqlens_k: Any
) -> tuple[int, ...]:
    checks.check_integers("cu_seqlens_q", cu_seqlens_q, query.device, None)
    entries = cu_seqlens_q.shape[0]
    checks.check_integers("cu_seqlens_k", cu_seqlens_k, query.device, entries)
    total_q, heads_q, dim_q = query.shape
    total_k, heads_k, dim_k = key.shape
    total_v, heads_v, dim_v = value.shape
    checks.check_heads(entries - 1, heads_q, heads_k, heads_v)
    checks.check_dims(total_q, total_k, total_v, dim_q, dim_k, dim_v)
    return entries - 1, heads_q, heads_k, total_q, total_k, dim_q, dim_v


def _longest(argument: str, max_seqlen: int | None, total: int) -> int:
    """The longest sequence; the total is a bound that needs no synchronisation with a device."""
    if max_seqlen is None:
        return total
    checks.check_unsigned(argument, max_seqlen, 30)
    return max_seqlen


def one_or_both(first: int, second: int) -> str:
    """The query's number and the key's, as one where they are the same."""
    return f"{first}" if first == second else f"{first}/{second}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
