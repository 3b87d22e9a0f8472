"""Gradient of the bias: dS, summed over the dimensions in which the bias is broadcast.

A program owns one tile of the bias's gradient and goes through all tiles of scores that are added
up in it, batch rows, heads, and where the bias has one row or column, blocks of those. S and dP are
computed once more; in exchange nothing of the size of the scores is written, there is no atomic
addition, and tiles that the band hides cost nothing. Few tiles are split over several programs,
whose sums in fp32 are added afterwards, in a fixed order, too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .backward_bias_kernel import backward_bias_kernel
from .launch import Config, launch
from .tiles import cdiv

_PROGRAMS = 512  # enough to fill a GPU a few times


def bias_gradient(
    call: Any,
    grad_bias: Tensor,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    config: Config,
) -> None:
    """Write grad_bias [B|1, Hq|1, Lq|1, Lk|1], of any strides.

    arguments and constants: of attention_backward, with delta written.
    """
    if grad_bias.numel() == 0:
        return
    lengths = arguments["len_q"], arguments["len_k"]
    blocks = [
        cdiv(length, block)
        for length, block in zip(lengths, (config.block_q, config.block_kv), strict=True)
    ]
    whole = (arguments["batch"], arguments["heads_q"], *blocks)
    sums = tuple(size == 1 for size in grad_bias.shape)
    tiles = math.prod(n for n, summed in zip(whole, sums, strict=True) if not summed)
    inner = [n if summed else 1 for n, summed in zip(whole, sums, strict=True)]
    terms = math.prod(inner)
    if terms == 0:
        grad_bias.zero_()
        return
    splits = min(terms, max(1, _PROGRAMS // tiles))
    partial = grad_bias[None]
    if splits > 1:
        partial = grad_bias.new_empty((splits, *grad_bias.shape), dtype=torch.float32)
    strides = zip(("split", "batch", "head", "query", "key"), partial.stride(), strict=True)
    arguments = arguments | {
        "grad_bias": partial,
        **{f"grad_bias_{axis}": stride for axis, stride in strides},
        **{f"tiles_{axis}": n for axis, n in zip("bhqk", whole, strict=True)},
        **{f"sum_{axis}": n for axis, n in zip("bhqk", inner, strict=True)},
        "per_split": cdiv(terms, splits),
        "terms": terms,
        "tiles": tiles,
    }
    constants = constants | {
        **{f"SUM_{axis}": summed for axis, summed in zip("BHQK", sums, strict=True)},
        "BLOCK_Q": config.block_q,
        "BLOCK_KV": config.block_kv,
    }
    launch(backward_bias_kernel, (tiles * splits,), arguments, constants, config)
    if splits > 1:
        grad_bias.copy_(partial.sum(dim=0))
