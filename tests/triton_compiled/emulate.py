"""Executes launches of triton_kernels by the PTX emulator.

    with running(Emulator("sm_90")):
        out = attention(query, key, value, backend="triton")

The launch is the one of production: its kernel is compiled by Triton for the arguments that it is
given, its PTX runs on copies of the tensors, with every check of tests/ptxsim, and what it wrote is
copied back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ptxsim.launch import Report, launch
from ptxsim.memory import GlobalMemory
from ptxsim.tensor_map import tensor_map
from torch import Tensor
from triton_compiled.compile import Compiler

# As cuTensorMapEncodeTiled numbers them.
SWIZZLE_BYTES = (0, 32, 64, 128)


class Memory:
    """The emulator's copies of tensors; tensors of one storage share theirs."""

    def __init__(self) -> None:
        self.memory = GlobalMemory()
        self._copies: dict[int, tuple[int, Tensor]] = {}

    def address(self, tensor: Tensor | None) -> int:
        """Where the first element lies."""
        if tensor is None or tensor.untyped_storage().nbytes() == 0:
            return 0
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        if start not in self._copies:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._copies[start] = self.memory.put(whole.numpy()), whole
        return self._copies[start][0] + tensor.data_ptr() - start

    def copy_back(self) -> None:
        for address, whole in self._copies.values():
            whole.copy_(torch.from_numpy(self.memory.get(address)))


class Emulator(Compiler):
    """A runner of triton_kernels.launch.

    Args:
        arch: "sm_80" or "sm_90".
        seed: of the schedule, see ptxsim.launch.
        edit: changes the PTX of a kernel before it runs, given its name.

    Attributes:
        reports: of each launch, with the kernel's name.
    """

    def __init__(
        self,
        arch: str,
        seed: int | None = None,
        edit: Callable[[str, str], str] | None = None,
    ) -> None:
        super().__init__(arch)
        self.seed, self.edit = seed, edit
        self.reports: list[tuple[str, Report]] = []

    def run(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        arguments: dict[str, Any],
        constants: dict[str, Any],
        config: Any,
    ) -> None:
        super().run(kernel, grid, arguments, constants, config)
        compiled = self.compiled[-1]
        name, ptx = compiled.metadata.name, compiled.asm["ptx"]
        memory = Memory()
        report = launch(
            ptx if self.edit is None else self.edit(name, ptx),
            name,
            grid,
            (compiled.metadata.num_warps * 32,),
            parameters(compiled, arguments, memory),
            compiled.metadata.shared,
            seed=self.seed,
            memory=memory.memory,
        )
        memory.copy_back()
        self.reports.append((name, report))


def parameters(compiled: Any, arguments: dict[str, Any], memory: Memory) -> list[Any]:
    """The parameters of the PTX, in its order, as Triton's launcher hands them over."""
    if compiled.metadata.global_scratch_size or compiled.metadata.profile_scratch_size:
        raise NotImplementedError(f"{compiled.metadata.name} wants scratch memory")
    descriptors = iter(compiled.metadata.tensordesc_meta or [])
    found: list[Any] = []
    for name, kind in compiled.src.signature.items():
        value = arguments.get(name)
        if kind == "constexpr":
            continue
        if kind.startswith("tensordesc"):
            found += _descriptor(value, next(descriptors, None), memory)
        elif kind.startswith("*"):
            found.append(memory.address(value))
        else:
            found.append(value)
    return [*found, 0, 0]  # scratch memory that nobody wants


def _descriptor(value: Any, layout: dict[str, Any] | None, memory: Memory) -> list[Any]:
    """A tensor descriptor with its shape and strides; without TMA its parts."""
    address, shape, strides = memory.address(value.base), list(value.shape), list(value.strides)
    if layout is None:
        return [address, *shape, *strides, value.padding == "nan", *shape, *strides]
    size = value.base.element_size()
    map_ = tensor_map(
        address,
        shape[::-1],
        [stride * size for stride in strides[::-1]],
        layout["block_size"][::-1],
        size,
        SWIZZLE_BYTES[layout["swizzle"]],
    )
    return [map_, *shape, *strides]
