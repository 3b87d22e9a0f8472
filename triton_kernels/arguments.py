"""From the fields of a call to the parameters that kernels share, by name."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .philox import dropout_keep_scale, dropout_threshold
from .scores import score_terms
from .tiles import dot_precision, padded_dim

# Triton compiles a kernel anew for integers that are 1 or divisible by 16. That pays for strides;
# lengths would only multiply the variants.
SIZES = (
    *("batch", "heads_q", "heads_kv", "group", "len_q", "len_k", "total_q", "total_k"),
    *("left", "right", "offset", "threshold", "alibi_batch", "blocks", "items"),
)


def call_arguments(call: Any) -> dict[str, Any]:
    """Pointers, strides and scalars of a call (see backends/call.py); outputs are not among them.

    A tensor t has strides t_batch, t_head and t_row; a packed one has t_batch = 0. The strides of
    the bias's broadcast dimensions are 0.
    """
    packed = call.cu_seqlens_q is not None
    batch = call.cu_seqlens_q.shape[0] - 1 if packed else call.query.shape[0]
    changed = call.bias is not None or call.alibi_slopes is not None
    slopes = call.alibi_slopes
    heads_q, heads_kv = call.query.shape[1], call.key.shape[1]
    arguments = {
        "bias": call.bias,
        "alibi_slopes": slopes,
        "sinks": call.sinks,
        "kv_lengths": call.kv_lengths,
        "cu_seqlens_q": call.cu_seqlens_q,
        "cu_seqlens_k": call.cu_seqlens_k,
        "band_offsets": call.band_offsets,
        "rng_state": call.rng_state,
        "alibi_batch": heads_q if slopes is not None and slopes.dim() == 2 else 0,
        "batch": batch,
        "heads_q": heads_q,
        "heads_kv": heads_kv,
        "group": heads_q // heads_kv,
        "len_q": call.max_seqlen_q,
        "len_k": call.max_seqlen_k,
        "total_q": call.query.shape[0] if packed else 0,
        "total_k": call.key.shape[0] if packed else 0,
        "left": call.left,
        "right": call.right,
        "offset": call.offset,
        **_scalars(call.scale, call.softcap, changed, call.dropout_p),
    }
    for name in ("query", "key", "value"):
        arguments.update(operand_arguments(name, getattr(call, name)))
    arguments.update(bias_strides("bias", call.bias))
    return arguments


def call_constants(call: Any) -> dict[str, Any]:
    """What kernels are compiled for: dims and the features of a call."""
    query = call.query
    changed = call.bias is not None or call.alibi_slopes is not None
    return {
        **_dims(query.shape[-1], call.value.shape[-1]),
        "HAS_BIAS": call.bias is not None,
        "HAS_ALIBI": call.alibi_slopes is not None,
        "HAS_SINKS": call.sinks is not None,
        "HAS_DROPOUT": dropout_threshold(call.dropout_p) != 0,
        "HAS_SOFTCAP": call.softcap != 0.0,
        "IS_PACKED": call.cu_seqlens_q is not None,
        "HAS_KV_LENGTHS": call.kv_lengths is not None,
        "HAS_BAND_OFFSETS": call.band_offsets is not None,
        "FOLD_SCALE": score_terms(call.scale, call.softcap, changed).fold_scale,
        "ACCURATE": query.dtype == torch.float32,
        "PRECISION": dot_precision(query),
    }


@functools.lru_cache(maxsize=256)
def _scalars(scale: float, softcap: float, changed: bool, dropout_p: float) -> dict[str, Any]:
    terms = score_terms(scale, softcap, changed)
    return {
        "scale": terms.scale,
        "exponent_scale": terms.exponent_scale,
        "unit": terms.unit,
        "softcap": softcap,
        "threshold": dropout_threshold(dropout_p),
        "keep_scale": dropout_keep_scale(dropout_p),
    }


@functools.lru_cache(maxsize=256)
def _dims(head_dim: int, value_dim: int) -> dict[str, int]:
    return {
        "DIM": head_dim,
        "DIM_BLOCK": padded_dim(head_dim),
        "VALUE_DIM": value_dim,
        "VALUE_BLOCK": padded_dim(value_dim),
    }


def operand_arguments(name: str, tensor: Tensor) -> dict[str, Any]:
    """An operand [B, H, L, D] or packed [T, H, D] and its strides name_batch, _head, _row."""
    if tensor.dim() == 3:
        row, head, _ = tensor.stride()
        batch = 0
    else:
        batch, head, row, _ = tensor.stride()
    return {name: tensor, f"{name}_batch": batch, f"{name}_head": head, f"{name}_row": row}


def row_arguments(name: str, tensor: Tensor | None) -> dict[str, Any]:
    """A value per row, contiguous [B, H, L] or packed [H, T], and its strides name_batch, _head."""
    if tensor is None:
        return {name: None, f"{name}_batch": 0, f"{name}_head": 0}
    batch = tensor.stride(0) if tensor.dim() == 3 else 0
    return {name: tensor, f"{name}_batch": batch, f"{name}_head": tensor.stride(-2)}


def bias_strides(name: str, bias: Tensor | None) -> dict[str, Any]:
    """Strides name_batch, _head, _query, _key; 0 where the bias broadcasts or is absent."""
    axes = ("batch", "head", "query", "key")
    if bias is None:
        return {f"{name}_{axis}": 0 for axis in axes}
    sizes = zip(axes, bias.shape, bias.stride(), strict=True)
    return {f"{name}_{axis}": 0 if size == 1 else stride for axis, size, stride in sizes}
