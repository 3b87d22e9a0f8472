"""Forward mode: out, lse and their tangents in one pass over the keys.

    dS = scale * (dQ K^T + Q dK^T) * slope of the softcap + dbias
    dlse = rowsum(P * dS) + P(sink) * dsink
    dO = (P * dS) V + P dV - dlse * O

The rows of P come by the online softmax, so the sums of P * dS are rescaled as those of P are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .arguments import (
    bias_strides,
    call_arguments,
    call_constants,
    operand_arguments,
    row_arguments,
)
from .backward_configs import backward_config
from .jvp_kernel import jvp_kernel
from .launch import arch_of, launch
from .schedule import heads_side_by_side
from .tiles import cdiv


def attention_jvp(
    call: Any,
    tangents: Sequence[Tensor | None],
    out: Tensor,
    lse: Tensor,
    out_tangent: Tensor,
    lse_tangent: Tensor,
) -> None:
    """Write out, lse and their tangents of one call (backends/call.py).

    Args:
        tangents: of query, key, value, bias and sinks, in their shapes, the last dimension
            contiguous but for the bias; None: does not move.
        out, out_tangent: [B, Hq, Lq, Dv], packed [Tq, Hq, Dv], last dimension contiguous.
        lse, lse_tangent: fp32 [B, Hq, Lq], packed [Hq, Tq], contiguous.
    """
    arguments, constants = call_arguments(call), call_constants(call)
    arguments.update(operand_arguments("out", out))
    arguments.update(operand_arguments("out_tangent", out_tangent))
    arguments.update(row_arguments("lse", lse))
    arguments.update(row_arguments("lse_tangent", lse_tangent))
    *operands, bias, sinks = tangents
    for name, tangent in zip(("query", "key", "value"), operands, strict=True):
        # What does not move lends its strides; they are not looked at.
        own = operand_arguments(
            f"{name}_tangent", getattr(call, name) if tangent is None else tangent
        )
        arguments.update(own | {f"{name}_tangent": tangent})
        constants[f"MOVES_{name.upper()}"] = tangent is not None
    arguments.update(bias_strides("bias_tangent", bias))
    arguments.update({"bias_tangent": bias, "sinks_tangent": sinks})
    constants["MOVES_BIAS"], constants["MOVES_SINKS"] = bias is not None, sinks is not None

    query, value = call.query, call.value
    window = min(call.left + call.right + 1, arguments["len_k"])
    config = backward_config(
        "jvp", query.shape[-1], value.shape[-1], query.dtype, arch_of(query.device), window
    )
    constants["BLOCK_Q"], constants["BLOCK_KV"] = config.block_q, config.block_kv
    rows = arguments["len_q"]
    if constants["IS_PACKED"] and arguments["total_q"] > 0:
        rows = max(rows, 1)  # rows behind the last sequence are to be written even so
    blocks = cdiv(rows, config.block_q)
    heads = arguments["heads_q"] * (arguments["batch"] + constants["IS_PACKED"])
    moving = 2 * (query.shape[-1] + value.shape[-1]) * query.element_size()
    arguments["blocks"], arguments["heads"] = blocks, heads
    arguments["section"] = heads_side_by_side(
        heads, arguments["group"], arguments["len_k"] * moving
    )
    launch(jvp_kernel, (blocks * heads,), arguments, constants, config)
