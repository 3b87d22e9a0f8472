"""Backward: gradients of query, key, value and bias from the saved out and lse.

Two forms. The deterministic one computes S and dP twice, once by blocks of keys (dK, dV) and once
by blocks of queries (dQ): every sum is one program's. The fused one computes them once, by blocks
of keys, and adds to dQ by atomic additions in fp32, whose order varies from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import call_arguments, call_constants, operand_arguments, row_arguments
from .backward_bias import bias_gradient
from .backward_configs import backward_config, use_fused_form
from .backward_delta import launch_delta
from .backward_key import backward_key_kernel
from .backward_query import backward_query_kernel
from .launch import Config, arch_of, launch
from .schedule import heads_side_by_side
from .tiles import cdiv


def attention_backward(
    call: Any,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    delta: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    grad_bias: Tensor | None,
    deterministic: bool = True,
    fused: bool | None = None,
) -> None:
    """Write the gradients of one call (backends/call.py); every element of every one is written.

    Args:
        out, grad_out: [B, Hq, Lq, Dv], packed [Tq, Hq, Dv], last dimension contiguous. out and lse
            may be a merge of several attentions.
        lse, grad_lse: fp32 [B, Hq, Lq], packed [Hq, Tq], contiguous; grad_lse None is zero.
        delta: like lse; rowsum(grad_out * out) - grad_lse is written, which the gradient of the
            sinks is made of.
        grad_query, grad_key, grad_value: in the shapes of the inputs, last dimension contiguous.
        grad_bias: in the shape of the bias, any strides; None: not wanted.
        deterministic: the same bits in every run.
        fused: which form of dQ; default the fastest one that `deterministic` allows.

    Raises:
        ValueError: fused and deterministic.
    """
    query = call.query
    arch = arch_of(query.device)
    dims = query.shape[-1], call.value.shape[-1]
    if fused is None:
        fused = not deterministic and use_fused_form(*dims, query.dtype, arch)
    if fused and deterministic:
        raise ValueError("fused: must be False with deterministic=True, got True")
    arguments, constants = call_arguments(call), call_constants(call)
    for name, tensor in (
        *(("grad_out", grad_out), ("out", out)),
        *(("grad_query", grad_query), ("grad_key", grad_key), ("grad_value", grad_value)),
    ):
        arguments.update(operand_arguments(name, tensor))
    for name, rows in (("lse", lse), ("grad_lse", grad_lse), ("delta", delta)):
        arguments.update(row_arguments(name, rows))
    constants["HAS_GRAD_LSE"] = grad_lse is not None
    constants["DEAD_ROWS"] = _may_have_dead_rows(call)
    window = min(call.left + call.right + 1, arguments["len_k"])

    def config(kind: str) -> Config:
        return backward_config(kind, *dims, query.dtype, arch, window)

    # A packed batch counts as one sequence: what is behind the last one belongs to it, too.
    packed = constants["IS_PACKED"]
    batch, rows = (1, arguments["total_q"]) if packed else (arguments["batch"], arguments["len_q"])
    launch_delta(arguments, constants, batch, arguments["heads_q"], rows)
    _launch_key(call, arguments, constants, config("backward_key"), grad_query if fused else None)
    if not fused:
        _launch_query(call, arguments, constants, config("backward_query"))
    if grad_bias is not None:
        bias_gradient(call, grad_bias, arguments, constants, config("backward_bias"))


def _launch_key(
    call: Any,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    config: Config,
    grad_query: Tensor | None,
) -> None:
    """dK and dV; with grad_query dQ, too."""
    arguments = dict(arguments)
    if grad_query is not None:
        sums = torch.zeros(call.query.shape, dtype=torch.float32, device=call.query.device)
        arguments.update(operand_arguments("grad_query", sums))
    grid = _schedule(call, arguments, constants, "k", config.block_kv)
    constants = constants | {"FUSED": grad_query is not None} | _blocks(config)
    launch(backward_key_kernel, grid, arguments, constants, config)
    if grad_query is not None:
        torch.mul(sums, call.scale, out=grad_query)


def _launch_query(
    call: Any, arguments: dict[str, Any], constants: dict[str, Any], config: Config
) -> None:
    arguments = dict(arguments)
    grid = _schedule(call, arguments, constants, "q", config.block_q)
    launch(backward_query_kernel, grid, arguments, constants | _blocks(config), config)


def _schedule(
    call: Any, arguments: dict[str, Any], constants: dict[str, Any], side: str, block: int
) -> tuple[int]:
    """The grid over blocks of queries ("q") or keys ("k"); adds the arguments of tile_index."""
    rows = arguments[f"len_{side}"]
    if constants["IS_PACKED"] and arguments[f"total_{side}"] > 0:
        rows = max(rows, 1)  # rows behind the last sequence are to be written even so
    blocks = cdiv(rows, block)
    per_row = arguments["heads_q" if side == "q" else "heads_kv"]
    heads = per_row * (arguments["batch"] + constants["IS_PACKED"])
    group = arguments["group"]
    dims, element = call.query.shape[-1] + call.value.shape[-1], call.query.element_size()
    # What the blocks of one head read again and again: K and V, or Q and dO of the whole group.
    read = arguments["len_k"] if side == "q" else arguments["len_q"] * group
    together = group if side == "q" else 1
    section = heads_side_by_side(heads, together, read * dims * element)
    arguments.update({"blocks": blocks, "heads": heads, "section": section})
    return (blocks * heads,)


def _blocks(config: Config) -> dict[str, int]:
    return {"BLOCK_Q": config.block_q, "BLOCK_KV": config.block_kv}


def _may_have_dead_rows(call: Any) -> bool:
    """Whether a query may see no key, as far as the host can tell."""
    unknown = (call.bias, call.kv_lengths, call.band_offsets, call.cu_seqlens_q)
    if any(tensor is not None for tensor in unknown):
        return True
    first_sees = call.offset + call.right >= 0
    last_sees = call.max_seqlen_q - 1 + call.offset - call.left < call.max_seqlen_k
    return not (first_sees and last_sees and call.max_seqlen_k > 0)
