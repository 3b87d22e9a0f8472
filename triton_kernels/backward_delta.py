"""delta = rowsum(grad_out * out) - grad_lse, what the other backward kernels need of a row."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .arguments import SIZES
from .launch import Config, launch
from .tiles import cdiv, operand_base, padded_dim, row_pointers

_ELEMENTS = 8192  # of out that a program takes at once


def launch_delta(
    arguments: dict[str, Any], constants: dict[str, Any], batch: int, heads: int, rows: int
) -> None:
    """Write delta; arguments and constants: the kernel's, but for what follows from the sizes."""
    value_block = padded_dim(constants["VALUE_DIM"])
    block = max(1, min(128, _ELEMENTS // value_block))
    blocks = cdiv(rows, block)
    launch(
        backward_delta_kernel,
        (blocks * heads * batch,),
        arguments | {"heads_q": heads, "len_q": rows, "blocks": blocks},
        constants | {"VALUE_BLOCK": value_block, "BLOCK_Q": block},
        Config(block, 0, 4, 1),
    )


@triton.jit(do_not_specialize=SIZES)
def backward_delta_kernel(
    out,
    out_batch,
    out_head,
    out_row,
    grad_out,
    grad_out_batch,
    grad_out_head,
    grad_out_row,
    lse,
    lse_batch,
    lse_head,
    grad_lse,
    grad_lse_batch,
    grad_lse_head,
    delta,
    delta_batch,
    delta_head,
    heads_q,
    len_q,
    blocks,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """BLOCK_Q rows of one head per program; a packed batch counts as one sequence here.

    A row with lse -inf gets 0, whatever its gradients hold. So do the rows behind the last
    sequence, which have that lse.
    """
    program = tl.program_id(0)
    head = program // blocks % heads_q
    b = program // blocks // heads_q
    row = program % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    exists = row < len_q
    lse_rows = operand_base(lse, b, head, row, lse_batch, lse_head, 1)
    live = tl.load(lse_rows, mask=exists, other=float("-inf")) != float("-inf")

    mask = live[:, None] & (tl.arange(0, VALUE_BLOCK) < VALUE_DIM)[None, :]
    out += tl.cast(b, tl.int64) * out_batch + tl.cast(head, tl.int64) * out_head
    grad_out += tl.cast(b, tl.int64) * grad_out_batch + tl.cast(head, tl.int64) * grad_out_head
    rows = tl.load(row_pointers(out, row, out_row, VALUE_BLOCK), mask=mask, other=0.0)
    dO = tl.load(row_pointers(grad_out, row, grad_out_row, VALUE_BLOCK), mask=mask, other=0.0)
    result = tl.sum(rows.to(tl.float32) * dO.to(tl.float32), axis=1)
    if HAS_GRAD_LSE:
        grads = operand_base(grad_lse, b, head, row, grad_lse_batch, grad_lse_head, 1)
        result -= tl.load(grads, mask=live, other=0.0)
    tl.store(operand_base(delta, b, head, row, delta_batch, delta_head, 1), result, mask=exists)
