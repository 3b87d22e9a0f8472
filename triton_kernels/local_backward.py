"""Backward of local attention, deterministic: every sum is one program's.

local_backward_query.py    dQ and the gradients of position and sigma, by blocks of queries
local_backward_key.py      dK and dV, by blocks of keys; only queries whose windows reach them
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import operand_arguments, row_arguments
from .backward_delta import launch_delta
from .launch import arch_of, launch
from .local import local_arguments, local_constants
from .local_backward_key import local_backward_key_kernel
from .local_backward_query import local_backward_query_kernel
from .local_configs import backward_tiles
from .tiles import cdiv


def local_backward(
    call: Any,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    grad_position: Tensor,
    grad_sigma: Tensor | None,
) -> None:
    """Write the gradients of one call; every element of every one is written.

    Args:
        call: see `local_forward`.
        out, grad_out: [B, Hq, Lq, Dv], last dimension contiguous. out and lse may be a merge.
        lse, grad_lse: fp32 [B, Hq, Lq], last dimension contiguous; grad_lse None is zero.
        grad_query, grad_key, grad_value: in the shapes of the inputs, last dimension contiguous.
        grad_position, grad_sigma: contiguous like position; grad_sigma None where sigma is.
    """
    batch, heads, len_q, dim = call.query.shape
    value_dim = call.value.shape[-1]
    arch = arch_of(call.query.device)
    tiles = backward_tiles(len_q, dim, value_dim, call.query.dtype, arch)
    blocks = cdiv(len_q, tiles.config.block_q)
    lse = lse.contiguous()  # like position, with which it shares its strides
    delta = torch.empty_like(lse)
    windows = torch.empty(batch * heads, blocks, 2, dtype=torch.int32, device=lse.device)
    arguments = local_arguments(call) | {"windows": windows, "blocks": blocks}
    arguments |= {"grad_position": grad_position, "grad_sigma": grad_sigma}
    for name, tensor in (
        *(("grad_out", grad_out), ("out", out)),
        *(("grad_query", grad_query), ("grad_key", grad_key), ("grad_value", grad_value)),
    ):
        arguments |= operand_arguments(name, tensor)
    for name, rows in (("lse", lse), ("grad_lse", grad_lse), ("delta", delta)):
        arguments |= row_arguments(name, rows)
    constants = local_constants(call) | tiles.constants() | {"HAS_GRAD_LSE": grad_lse is not None}

    launch_delta(arguments, constants, batch, heads, len_q)
    groups = cdiv(dim, tiles.dim_block)
    launch(
        local_backward_query_kernel,
        (groups * blocks * heads * batch,),
        arguments | {"groups": groups},
        constants,
        tiles.config,
    )
    groups = max(groups, cdiv(value_dim, tiles.value_block))
    key_blocks = cdiv(call.key.shape[2], tiles.config.block_kv)
    launch(
        local_backward_key_kernel,
        (groups * key_blocks * call.key.shape[1] * batch,),
        arguments | {"groups": groups, "key_blocks": key_blocks},
        constants,
        tiles.config,
    )
