"""Local attention: each query attends to a window around a position of its own, which is real.

One block of queries of one head per program, as in forward.py. The window is computed from the
position, in registers: keys outside of all windows of a block are not loaded.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .arguments import operand_arguments
from .launch import arch_of, launch
from .local_configs import forward_tiles
from .local_kernel import local_kernel
from .tiles import cdiv, dot_precision

_EVERY_KEY = 1 << 40  # half of a window that reaches from any position to any key


def local_forward(call: Any, out: Tensor, lse: Tensor) -> None:
    """Write out and lse of one call.

    Args:
        call: query [B, Hq, Lq, D], key [B, Hkv, Lk, D], value [B, Hkv, Lk, Dv], last dimension
            contiguous; position fp32 [B, Hq, Lq], contiguous, and sigma like it or None, then
            fixed_sigma; key_lengths int32 [B] or None; width, scale and log_bias.
        out: [B, Hq, Lq, Dv], last dimension contiguous.
        lse: fp32 [B, Hq, Lq], contiguous.
    """
    batch, heads, len_q, dim = call.query.shape
    value_dim = call.value.shape[-1]
    window = 2.0 * call.width + 1.0
    arch = arch_of(call.query.device)
    tiles = forward_tiles(len_q, dim, value_dim, call.query.dtype, arch, window)
    blocks, groups = cdiv(len_q, tiles.config.block_q), cdiv(value_dim, tiles.value_block)
    arguments = local_arguments(call) | {"lse": lse, "blocks": blocks, "groups": groups}
    arguments |= operand_arguments("out", out)
    constants = local_constants(call) | tiles.constants()
    launch(local_kernel, (groups * blocks * heads * batch,), arguments, constants, tiles.config)


def local_arguments(call: Any) -> dict[str, Any]:
    """Pointers, strides and scalars of a call by the names of the kernels' parameters."""
    heads_q, heads_kv = call.query.shape[1], call.key.shape[1]
    arguments = {
        "position": call.position,
        "sigma": call.sigma,
        "row_batch": call.position.stride(0),
        "row_head": call.position.stride(1),
        "key_lengths": call.key_lengths,
        "heads_q": heads_q,
        "heads_kv": heads_kv,
        "group": heads_q // heads_kv,
        "len_q": call.query.shape[2],
        "len_k": call.key.shape[2],
        "half": _EVERY_KEY if math.isinf(call.width) else math.floor(call.width),
        "fixed_inverse": 1.0 / call.fixed_sigma if call.sigma is None else 0.0,
        "scale": call.scale,
    }
    for name in ("query", "key", "value"):
        arguments.update(operand_arguments(name, getattr(call, name)))
    return arguments


def local_constants(call: Any) -> dict[str, Any]:
    """What kernels are compiled for."""
    return {
        "DIM": call.query.shape[-1],
        "VALUE_DIM": call.value.shape[-1],
        "HAS_LENGTHS": call.key_lengths is not None,
        "HAS_SIGMA": call.sigma is not None,
        "LOG_BIAS": call.log_bias,
        "PRECISION": dot_precision(call.query),
    }
