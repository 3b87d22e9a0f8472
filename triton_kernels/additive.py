"""Additive attention: softmax over v . tanh(q + k), and the context, without [Lq, Lk, D] in memory.

One block of queries of one head per program, as in forward.py; the scores are those of
additive_tile.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .additive_configs import forward_tiles, native_tanh
from .additive_kernel import additive_kernel
from .arguments import operand_arguments, row_arguments
from .launch import arch_of, launch
from .tiles import cdiv, dot_precision


def additive_forward(call: Any, out: Tensor, lse: Tensor) -> None:
    """Write out and lse of one call.

    Args:
        call: query [B, H, Lq, D], key [B, H, Lk, D], value [B, H, Lk, Dv], last dimension
            contiguous; v fp32 [H, D], contiguous; key_lengths int32 [B] or None; left, right and
            offset of the band.
        out: [B, H, Lq, Dv], last dimension contiguous.
        lse: fp32 [B, H, Lq], contiguous.
    """
    batch, heads, len_q, _ = call.query.shape
    value_dim = call.value.shape[-1]
    arch = arch_of(call.query.device)
    tiles = forward_tiles(len_q, value_dim, call.query.dtype, arch)
    blocks, groups = cdiv(len_q, tiles.config.block_q), cdiv(value_dim, tiles.value_block)
    arguments = additive_arguments(call) | {"blocks": blocks, "groups": groups}
    arguments |= operand_arguments("out", out) | row_arguments("lse", lse)
    constants = additive_constants(call, arch) | tiles.constants()
    launch(additive_kernel, (groups * blocks * heads * batch,), arguments, constants, tiles.config)


def additive_arguments(call: Any) -> dict[str, Any]:
    """Pointers, strides and scalars of a call by the names of the kernels' parameters."""
    arguments = {
        "v": call.v,
        "key_lengths": call.key_lengths,
        "heads": call.query.shape[1],
        "len_q": call.query.shape[2],
        "len_k": call.key.shape[2],
        "left": call.left,
        "right": call.right,
        "offset": call.offset,
    }
    for name in ("query", "key", "value"):
        arguments.update(operand_arguments(name, getattr(call, name)))
    return arguments


def additive_constants(call: Any, arch: str) -> dict[str, Any]:
    """What kernels are compiled for."""
    dtype = call.query.dtype
    return {
        "DIM": call.query.shape[-1],
        "VALUE_DIM": call.value.shape[-1],
        "HAS_LENGTHS": call.key_lengths is not None,
        "ACCURATE": dtype.itemsize == 4,
        "NATIVE_TANH": native_tanh(dtype, arch),
        "PRECISION": dot_precision(call.query),
    }
