"""Backward of additive attention: gradients of query, key, value and v from the saved lse.

    tile     P and dS into memory, for some heads, or some queries of one head, at a time
    rows     dq and the sums of dv from dS; dk likewise, queries and keys in each other's place
    value    dV = P^T dO

A tanh for each query, key and dim is computed three times. Every sum is one program's, in a fixed
order; where queries come in several parts, their sums are added in the order of the launches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .additive import additive_arguments, additive_constants
from .additive_backward_rows import additive_backward_rows_kernel
from .additive_backward_tile import additive_backward_tile_kernel
from .additive_backward_value import additive_backward_value_kernel
from .additive_configs import ROWS, backward_tiles, rows_tiles, value_tiles
from .arguments import operand_arguments, row_arguments
from .backward_delta import launch_delta
from .launch import arch_of, launch
from .tiles import cdiv

PART_BYTES = 64 << 20  # of P and dS that exist at a time


class Part(NamedTuple):
    """Heads [first_item, first_item + items) of the batch, queries [first_query, ... + rows)."""

    first_item: int
    items: int
    first_query: int
    rows: int


def additive_backward(
    call: Any,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    grad_value: Tensor | None,
    grad_v: Tensor | None,
) -> None:
    """Write the gradients of one call; None: not wanted.

    Args:
        call: see `additive_forward`.
        out, grad_out: [B, H, Lq, Dv], last dimension contiguous. out and lse may be a merge.
        lse, grad_lse: fp32 [B, H, Lq], last dimension contiguous; grad_lse None is zero.
        grad_query, grad_key, grad_value: in the shapes of the inputs, last dimension contiguous.
        grad_v: fp32 [H, D].
    """
    if grad_query is None and grad_v is not None:
        grad_query = torch.empty_like(call.query)  # comes with it
    launcher = _Launcher(call, out, lse, grad_out, grad_lse)
    parts = list(_parts(call))
    key_sums, value_sums = (_sums(gradient, parts) for gradient in (grad_key, grad_value))
    v_sums = launcher.empty_v_sums()
    for part in parts:
        launcher.tile(part)
        if grad_query is not None:
            launcher.query_side(part, grad_query, v_sums)
        if key_sums is not None:
            launcher.key_side(part, key_sums)
        if value_sums is not None:
            launcher.value(part, value_sums)
    for gradient, sums in ((grad_key, key_sums), (grad_value, value_sums)):
        if gradient is not None and sums is not None and sums is not gradient:
            gradient.copy_(sums)
    if grad_v is not None:
        batch, heads = call.query.shape[:2]
        grad_v.copy_(v_sums.unflatten(0, (batch, heads)).sum(dim=(0, 2)))


def _sums(gradient: Tensor | None, parts: Sequence[Part]) -> Tensor | None:
    """Where parts add up what they contribute to the gradient of keys or values."""
    if gradient is None or all(part.first_query == 0 for part in parts):
        return gradient
    return torch.empty_like(gradient, dtype=torch.float32)


def _parts(call: Any) -> Iterator[Part]:
    """P and dS of one part fit into PART_BYTES; whole heads if they do."""
    batch, heads, len_q, _ = call.query.shape
    row_bytes = max(1, call.key.shape[2]) * (4 + call.value.element_size())
    items, total = PART_BYTES // (row_bytes * max(1, len_q)), batch * heads
    if items >= 1:
        for first in range(0, total, items):
            yield Part(first, min(items, total - first), 0, len_q)
        return
    rows = max(ROWS, PART_BYTES // row_bytes // ROWS * ROWS)
    for item in range(total):
        for first in range(0, len_q, rows):
            yield Part(item, 1, first, min(rows, len_q - first))


class _Launcher:
    """Starts the kernels of one call, which share P, dS and delta."""

    def __init__(
        self, call: Any, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> None:
        self.call, self.arch = call, arch_of(call.query.device)
        self.arguments = additive_arguments(call)
        self.constants = additive_constants(call, self.arch)
        self.constants["HAS_GRAD_LSE"] = grad_lse is not None
        delta = torch.empty_like(lse)
        for name, tensor in (("grad_out", grad_out), ("out", out)):
            self.arguments.update(operand_arguments(name, tensor))
        for name, rows in (("lse", lse), ("grad_lse", grad_lse), ("delta", delta)):
            self.arguments.update(row_arguments(name, rows))
        launch_delta(self.arguments, self.constants, *call.query.shape[:3])

    def empty_v_sums(self) -> Tensor:
        """A sum for each block of queries, [heads of the batch, blocks, D]."""
        batch, heads, len_q, dim = self.call.query.shape
        blocks = cdiv(len_q, self._rows_tiles("query").config.block_q)
        return self.call.query.new_empty(batch * heads, blocks, dim, dtype=torch.float32)

    def tile(self, part: Part) -> None:
        call = self.call
        len_k = call.key.shape[2]
        tiles = backward_tiles(call.query.shape[2], call.value.shape[-1], self.arch)
        shape = part.items, part.rows, len_k
        self.weights = call.value.new_empty(shape)
        self.grad_scores = call.value.new_empty(shape, dtype=torch.float32)
        blocks, key_blocks = (
            cdiv(part.rows, tiles.config.block_q),
            cdiv(len_k, tiles.config.block_kv),
        )
        arguments = self.arguments | {"weights": self.weights, "grad_scores": self.grad_scores}
        arguments |= _place(part) | {"blocks": blocks, "key_blocks": key_blocks}
        launch(
            additive_backward_tile_kernel,
            (key_blocks * blocks * part.items,),
            arguments,
            self.constants | tiles.constants(),
            tiles.config,
        )

    def query_side(self, part: Part, grad_query: Tensor, v_sums: Tensor) -> None:
        call, len_k = self.call, self.call.key.shape[2]
        own = {"first_own": part.first_query, "rows_own": part.rows}
        other = {"first_other": 0, "len_other": len_k}
        strides = {"scores_own": len_k, "scores_other": 1}
        band = {"left": call.left, "right": call.right, "offset": call.offset}
        numbers = own | other | strides | band
        self._rows(part, "query", "key", grad_query, numbers, v_sums, add=False)

    def key_side(self, part: Part, key_sums: Tensor) -> None:
        """A key sees the queries that see it: the band, mirrored."""
        call, len_k = self.call, self.call.key.shape[2]
        own = {"first_own": 0, "rows_own": len_k}
        other = {"first_other": part.first_query, "len_other": part.first_query + part.rows}
        strides = {"scores_own": 1, "scores_other": len_k}
        band = {"left": call.right, "right": call.left, "offset": -call.offset}
        numbers = own | other | strides | band
        self._rows(part, "key", "query", key_sums, numbers, None, add=part.first_query > 0)

    def value(self, part: Part, value_sums: Tensor) -> None:
        call = self.call
        tiles = value_tiles(call.value.shape[-1], call.query.dtype, self.arch)
        blocks = cdiv(call.key.shape[2], tiles.config.block_kv)
        groups = cdiv(call.value.shape[-1], tiles.value_block)
        arguments = self.arguments | {"weights": self.weights, "blocks": blocks, "groups": groups}
        arguments |= _place(part) | operand_arguments("grad_value", value_sums)
        constants = self.constants | tiles.constants() | {"ADD": part.first_query > 0}
        grid = (groups * blocks * part.items,)
        launch(additive_backward_value_kernel, grid, arguments, constants, tiles.config)

    def _rows_tiles(self, side: str) -> Any:
        lengths = self.call.query.shape[2], self.call.key.shape[2]
        return rows_tiles(*(lengths if side == "query" else lengths[::-1]), self.arch)

    def _rows(
        self,
        part: Part,
        side: str,
        other_side: str,
        gradient: Tensor,
        numbers: dict[str, int],
        v_sums: Tensor | None,
        add: bool,
    ) -> None:
        tiles = self._rows_tiles(side)
        blocks = cdiv(numbers["rows_own"], tiles.config.block_q)
        groups = cdiv(self.call.query.shape[-1], tiles.dim_block)
        arguments = self.arguments | numbers | _place(part)
        for role, tensor in (
            *(("own", getattr(self.call, side)), ("other", getattr(self.call, other_side))),
            ("grad_own", gradient),
        ):
            arguments |= operand_arguments(role, tensor)
        arguments |= {
            "grad_scores": self.grad_scores,
            "scores_item": part.rows * self.call.key.shape[2],
            "grad_v": v_sums,
            "blocks": blocks,
            "own_blocks": 0 if v_sums is None else v_sums.shape[1],
            "groups": groups,
        }
        constants = self.constants | tiles.constants()
        constants |= {"OWN_IS_QUERY": v_sums is not None, "ADD": add}
        grid = (groups * blocks * part.items,)
        launch(additive_backward_rows_kernel, grid, arguments, constants, tiles.config)


def _place(part: Part) -> dict[str, int]:
    return {"first_item": part.first_item, "first_query": part.first_query, "rows": part.rows}
