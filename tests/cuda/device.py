"""Tensors in the memory of the PTX emulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ptxsim.memory import GlobalMemory
from torch import Tensor

# A tensor as kernels take it: the address of its first element, and its strides of batch, head and
# row in elements. Packed tensors have no batch.
Strided = tuple[int, int, int, int]


class Device:
    """Copies tensors in, with their strides, and out again."""

    def __init__(self) -> None:
        self.memory = GlobalMemory()
        self._places: dict[int, tuple[int, Tensor]] = {}

    def put(self, tensor: Tensor, *, initialised: bool = True) -> int:
        """The address of the first element. The whole storage travels.

        Args:
            initialised: if not, reading an element that no kernel has written is an error.
        """
        storage = _bits(torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage()))
        start = self.memory.put(storage, initialised=initialised)
        address = start + tensor.storage_offset() * tensor.element_size()
        self._places[address] = (start, tensor)
        return address

    def rows(self, tensor: Tensor, **how: Any) -> Strided:
        """[B, H, L, D], packed [T, H, D]."""
        address = self.put(tensor, **how)
        if tensor.dim() == 3:
            return address, 0, tensor.stride(1), tensor.stride(0)
        return address, tensor.stride(0), tensor.stride(1), tensor.stride(2)

    def row_values(self, tensor: Tensor, **how: Any) -> Strided:
        """[B, H, L], packed [H, T]."""
        address = self.put(tensor, **how)
        if tensor.dim() == 2:
            return address, 0, tensor.stride(0), tensor.stride(1)
        return address, tensor.stride(0), tensor.stride(1), tensor.stride(2)

    def read(self, address: int) -> Tensor:
        """The tensor that was put at `address`, as it is now."""
        start, tensor = self._places[address]
        storage = torch.from_numpy(self.memory.get(start)).view(tensor.dtype)
        return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _bits(tensor: Tensor) -> np.ndarray:
    return (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).numpy()


def poisoned(like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """NaN in every element, so that what no kernel writes shows; dense like `like` where it is."""
    tensor = torch.empty_like(like) if shape is None else like.new_empty(shape)
    return tensor.fill_(torch.nan)
