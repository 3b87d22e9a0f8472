"""Moving tiles [rows, dim] between memory and kernels, padded to powers of two with zeros.

A tile comes by pointers, which takes any strides, or by a tensor descriptor, which is what the TMA
unit of Hopper and later wants. Offsets of a tensor's parts are 64-bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

DESCRIPTOR_ALIGN = 16  # bytes, of the first element and of all strides but the last
DESCRIPTOR_DIM = 256  # the widest tile that is loaded by descriptor


def cdiv(count: int, block: int) -> int:
    """How many blocks hold `count` rows. triton.cdiv takes many times as long on the host."""
    return -(-count // block)


def padded_dim(dim: int) -> int:
    """Columns of a tile that holds rows of `dim` elements; a product needs at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def describable(tensor: Tensor) -> bool:
    """Whether a tensor descriptor can stand for an operand [B, H, L, D] or packed [T, H, D]."""
    if tensor.numel() == 0 or padded_dim(tensor.shape[-1]) > DESCRIPTOR_DIM:
        return False
    size = tensor.element_size()
    leading = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    aligned = (
        n == 1 or (stride > 0 and stride * size % DESCRIPTOR_ALIGN == 0) for n, stride in leading
    )
    return tensor.data_ptr() % DESCRIPTOR_ALIGN == 0 and all(aligned)


def descriptor(tensor: Tensor, block: int) -> TensorDescriptor:
    """The operand as [B, H, L, D], a packed one with B = 1, in tiles of `block` rows of a head."""
    if tensor.dim() == 3:
        tensor = tensor.transpose(0, 1).unsqueeze(0)
    # A dimension of one element may have any stride, also one that descriptors refuse.
    filler = DESCRIPTOR_ALIGN // tensor.element_size()
    leading = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    strides = [filler if n == 1 else stride for n, stride in leading]
    shape = [1, 1, block, padded_dim(tensor.shape[-1])]
    return TensorDescriptor(tensor, list(tensor.shape), [*strides, 1], shape)


def dot_precision(tensor: Tensor) -> str:
    """How fp32 operands are multiplied: as torch's own matrix products are told to."""
    if tensor.dtype != torch.float32 or not tensor.is_cuda or torch.version.hip is not None:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@triton.jit
def operand_base(data, batch, head, row, batch_stride, head_stride, row_stride):
    """Pointer to one row of one head; batch, head and row are scalars or blocks."""
    return (
        data
        + tl.cast(batch, tl.int64) * batch_stride
        + tl.cast(head, tl.int64) * head_stride
        + tl.cast(row, tl.int64) * row_stride
    )


@triton.jit
def row_pointers(base, rows, row_stride, DIM_BLOCK: tl.constexpr):
    """Pointers to a tile: [rows, DIM_BLOCK]; `base`: a scalar, or [rows, 1] of them."""
    columns = tl.arange(0, DIM_BLOCK)
    return base + rows[:, None].to(tl.int64) * row_stride + columns[None, :]


@triton.jit
def row_mask(rows, rows_end, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr, CHECK_ROWS: tl.constexpr):
    """Which elements of a tile exist; None: all of them."""
    columns = tl.arange(0, DIM_BLOCK)
    if CHECK_ROWS:
        if DIM == DIM_BLOCK:
            return (rows < rows_end)[:, None]
        else:
            return (rows < rows_end)[:, None] & (columns < DIM)[None, :]
    else:
        return (columns < DIM)[None, :]


@triton.jit
def load_rows(
    base,
    rows,
    rows_end,
    row_stride,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    CHECK_ROWS: tl.constexpr = True,
):
    """Rows of an operand [rows, DIM_BLOCK], 0 from rows_end on and behind DIM.

    CHECK_ROWS False: all rows exist. `base`: see `row_pointers`.
    """
    pointers = row_pointers(base, rows, row_stride, DIM_BLOCK)
    if CHECK_ROWS or DIM != DIM_BLOCK:
        mask = row_mask(rows, rows_end, DIM, DIM_BLOCK, CHECK_ROWS)
        return tl.load(pointers, mask=mask, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def load_tile(
    source,
    base,
    batch,
    head,
    start,
    first,
    rows_end,
    row_stride,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
    USE_DESCRIPTORS: tl.constexpr,
):
    """Rows [first, first + BLOCK) of a sequence: by the descriptor `source`, or from `base`.

    start: the sequence's first row in a packed tensor, which `base` points to already. With
    CHECK_ROWS rows from rows_end on are 0, whatever memory holds there.
    """
    rows = first + tl.arange(0, BLOCK)
    if USE_DESCRIPTORS:
        tile = source.load([batch, head, start + first, 0]).reshape([BLOCK, DIM_BLOCK])
        if CHECK_ROWS:
            tile = tl.where((rows < rows_end)[:, None], tile, 0.0)
        return tile
    else:
        return load_rows(base, rows, rows_end, row_stride, DIM, DIM_BLOCK, CHECK_ROWS)


@triton.jit
def store_rows(base, rows, rows_end, row_stride, tile, DIM: tl.constexpr, DIM_BLOCK: tl.constexpr):
    """Write the rows of a tile that exist, in the element type of `base`."""
    pointers = row_pointers(base, rows, row_stride, DIM_BLOCK)
    mask = row_mask(rows, rows_end, DIM, DIM_BLOCK, True)
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_columns(base, rows, exists, row_stride, columns, columns_end):
    """Some columns of some rows of an operand, 0 in rows that are not to be loaded.

    exists: [rows], which are; columns: [columns], those from columns_end on are 0, too.
    """
    pointers = base + rows[:, None].to(tl.int64) * row_stride + columns[None, :]
    mask = exists[:, None] & (columns < columns_end)[None, :]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def store_columns(base, rows, exists, row_stride, columns, columns_end, tile):
    """Write a tile where `load_columns` reads one, in the element type of `base`."""
    pointers = base + rows[:, None].to(tl.int64) * row_stride + columns[None, :]
    mask = exists[:, None] & (columns < columns_end)[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def clear_rows_behind(
    out_base,
    lse_base,
    rows,
    out_row,
    block,
    blocks,
    BLOCK_Q: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
):
    """0, and -inf as lse, in the rows behind the last sequence, of which there may be many."""
    zeros = tl.zeros([BLOCK_Q, VALUE_BLOCK], tl.float32)
    for first in tl.range(block * BLOCK_Q, rows, blocks * BLOCK_Q):
        row = first + tl.arange(0, BLOCK_Q)
        store_rows(out_base, row, rows, out_row, zeros, VALUE_DIM, VALUE_BLOCK)
        tl.store(lse_base + row, float("-inf"), mask=row < rows)
