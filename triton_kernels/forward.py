"""Forward: out = softmax(scores) V, one block of query rows of one head per program.

    edge tiles of keys  first those that the band or a length cuts, with masks
    full tiles          then those that every query of the block sees, without

Where queries are few, the query heads of a key head share a block (PACK_HEADS): row r is query
r // group of head r % group, and keys and values are read once for all of them.

Numerics of -inf: see softmax.py. Order of the score terms: see scores.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import autotune
from .arguments import call_arguments, call_constants, operand_arguments, row_arguments
from .configs import by_pointers, candidates, config_for
from .forward_kernel import forward_kernel
from .launch import Config, arch_of, launch
from .schedule import heads_side_by_side
from .tiles import cdiv, describable, descriptor

PACK_BELOW = 64  # queries


def attention_forward(call: Any, out: Tensor, lse: Tensor, config: Config | None = None) -> None:
    """Write out and lse of one call (backends/call.py).

    Args:
        out: [B, Hq, Lq, Dv], packed [Tq, Hq, Dv], any strides but the last.
        lse: fp32 [B, Hq, Lq], packed [Hq, Tq], contiguous.
        config: None is the fixed one, or the fastest where FUSED_ATTENTION_TRITON_AUTOTUNE=1.
    """
    arguments, constants = call_arguments(call), call_constants(call)
    arguments.update(operand_arguments("out", out))
    arguments.update(row_arguments("lse", lse))
    # A block of packed heads has no less rows than one of a single head would.
    few = arguments["group"] > 1 and arguments["len_q"] < PACK_BELOW
    rows = arguments["len_q"] * (arguments["group"] if few else 1)
    window = min(call.left + call.right + 1, arguments["len_k"])
    described = describable(call.key) and describable(call.value)
    query = call.query
    arch = arch_of(query.device)
    dims = query.shape[-1], call.value.shape[-1]
    tile_terms = constants["HAS_BIAS"] or constants["HAS_DROPOUT"]
    choice = ("forward", *dims, query.dtype, arch, window, rows, tile_terms)

    def run(config: Config) -> None:
        if config.use_descriptors and not described:
            config = by_pointers(config, arch)
        _launch(call, dict(arguments), dict(constants), few, config)

    if config is None and autotune.wanted():
        shape = (*query.shape, call.key.shape[1], call.max_seqlen_k, tuple(constants.values()))
        config = autotune.fastest((*choice, shape), candidates(*choice), run)
    run(config_for(*choice) if config is None else config)


def _launch(
    call: Any,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    pack_heads: bool,
    config: Config,
) -> None:
    packed = constants["IS_PACKED"]
    rows = arguments["len_q"] * (arguments["group"] if pack_heads else 1)
    if packed and arguments["total_q"] > 0:
        rows = max(rows, 1)  # rows behind the last sequence are to be written even so
    blocks = cdiv(rows, config.block_q)
    heads_per_row = arguments["heads_kv" if pack_heads else "heads_q"]
    heads = heads_per_row * (arguments["batch"] + packed)
    element = call.key.element_size()
    keys_and_values = arguments["len_k"] * (call.key.shape[-1] + call.value.shape[-1]) * element
    arguments["blocks"], arguments["heads"] = blocks, heads
    arguments["section"] = heads_side_by_side(
        heads, 1 if pack_heads else arguments["group"], keys_and_values
    )
    if config.use_descriptors:
        arguments["key"] = descriptor(call.key, config.block_kv)
        arguments["value"] = descriptor(call.value, config.block_kv)
    constants["BLOCK_Q"], constants["BLOCK_KV"] = config.block_q, config.block_kv
    constants["PACK_HEADS"] = pack_heads
    constants["USE_DESCRIPTORS"] = config.use_descriptors
    constants["WARP_SPECIALIZE"] = config.warp_specialize
    launch(forward_kernel, (blocks * heads,), arguments, constants, config)
