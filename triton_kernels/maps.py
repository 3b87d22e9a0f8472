"""What the weights look like, from the LSE: P = e^(S - lse), tile by tile.

    rows      a block of queries walks its keys: entropy, argmax, the highest weights
    columns   a block of keys walks its queries: the sum of the weights that each key receives
    weights   chosen queries, of any places, and a block of keys: the weights themselves

Scores are those of scores.py. Each program writes what no other writes, so nothing is added
atomically and results have the same bits in every run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import call_arguments, call_constants, row_arguments
from .configs import by_pointers
from .launch import INTERPRETER, Config, arch_of, launch
from .maps_columns_kernel import maps_columns_kernel
from .maps_rows_kernel import maps_rows_kernel
from .maps_weights_kernel import maps_weights_kernel
from .schedule import heads_side_by_side
from .tiles import cdiv, padded_dim


def attention_maps(
    call: Any,
    weights: Tensor | None,
    column_mass: Tensor | None,
    entropy: Tensor | None,
    argmax: Tensor | None,
    top_weights: Tensor | None,
    top_indices: Tensor | None,
) -> None:
    """Write the results of one call (maps/call.py) that are not None; all are contiguous."""
    attention = call.attention
    arguments, constants = call_arguments(attention), call_constants(attention)
    arguments.update(row_arguments("lse", call.lse))
    chosen = arguments["heads_q"] if call.heads is None else call.heads.shape[0]
    arguments |= {"chosen_heads": call.heads, "chosen": chosen, "entropy": entropy}
    arguments |= {"argmax": argmax, "top_weights": top_weights, "top_indices": top_indices}
    arguments |= {"column_mass": column_mass, "weights": weights}
    constants |= {
        "HAS_HEADS": call.heads is not None,
        "WANTS_ENTROPY": entropy is not None,
        "WANTS_ARGMAX": argmax is not None,
        "TOP_K": call.top_k,
        "SLOTS": 1 << max(call.top_k - 1, 1).bit_length(),
    }
    config = _config(call.query.shape[-1], call.query.dtype, arch_of(call.query.device))
    constants["BLOCK_Q"], constants["BLOCK_KV"] = config.block_q, config.block_kv
    length = 0 if constants["IS_PACKED"] else 2
    arguments["result_rows"], arguments["result_keys"] = (
        call.query.shape[length],
        call.key.shape[length],
    )
    if entropy is not None or argmax is not None or call.top_k:
        few = constants | {"BLOCK_Q": 16} if call.top_k > 16 else constants  # lists in registers
        size = arguments["len_q"], arguments["total_q"], few["BLOCK_Q"]
        _launch_blocks(maps_rows_kernel, size, call.key, arguments, few, config)
    if column_mass is not None:
        size = arguments["len_k"], arguments["total_k"], config.block_kv
        _launch_blocks(maps_columns_kernel, size, call.query, arguments, constants, config)
    if weights is not None:
        _launch_weights(call, arguments, constants, config)


def _config(head_dim: int, dtype: torch.dtype, arch: str) -> Config:
    """One operand stays, the other passes; the scores of a tile, three times, are in registers."""
    dim = padded_dim(head_dim)
    if arch == INTERPRETER:
        return Config(64, 64, 4, 1)
    if dtype == torch.float32:
        config = Config(32, 32, 4, 1) if dim <= 64 else Config(32, 32, 8, 1)
        return config if dim <= 256 else Config(16, 32, 16, 1)
    if dim <= 128:
        return by_pointers(Config(64, 64, 4, 2), arch)
    return Config(64, 32, 8, 1) if dim <= 256 else Config(32, 32, 8, 1)


def _launch_blocks(
    kernel: Any,
    size: tuple[int, int, int],
    passing: Tensor,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    config: Config,
) -> None:
    """A program for each block of each chosen head; size: longest, total, rows of a block."""
    longest, total, block = size
    packed = constants["IS_PACKED"]
    if packed and total > 0:
        longest = max(longest, 1)  # rows behind the last sequence are to be written even so
    blocks = cdiv(longest, block)
    heads = arguments["chosen"] * (arguments["batch"] + packed)
    passing_bytes = passing.shape[0 if packed else 2] * passing.shape[-1] * passing.element_size()
    section = heads_side_by_side(heads, 1, passing_bytes)
    arguments = arguments | {"blocks": blocks, "heads": heads, "section": section}
    launch(kernel, (blocks * heads,), arguments, constants, config)


def _launch_weights(
    call: Any, arguments: dict[str, Any], constants: dict[str, Any], config: Config
) -> None:
    rows = call.rows.shape[0]
    packed = constants["IS_PACKED"]
    sequences = None
    if packed:
        ends = call.cu_seqlens_q[1:]
        sequences = torch.searchsorted(ends, call.rows, right=True, out_int32=True)
    block = min(config.block_q, max(16, 1 << (rows - 1).bit_length()))
    row_blocks = cdiv(rows, block)
    key_blocks = cdiv(arguments["result_keys"], config.block_kv)
    arguments = arguments | {
        "chosen_rows": call.rows,
        "row_sequences": sequences,
        "row_count": rows,
        "row_blocks": row_blocks,
        "key_blocks": key_blocks,
    }
    heads = arguments["chosen"] * (1 if packed else arguments["batch"])
    grid = (key_blocks * row_blocks * heads,)
    launch(maps_weights_kernel, grid, arguments, constants | {"BLOCK_Q": block}, config)
