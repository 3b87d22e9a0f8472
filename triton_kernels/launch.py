"""The one place where kernels start."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

INTERPRETER = "interpreter"


class Config(NamedTuple):
    """Tile shape and compiler options of one kernel."""

    block_q: int
    block_kv: int
    num_warps: int
    num_stages: int
    use_descriptors: bool = False
    warp_specialize: bool = False
    extra: tuple[tuple[str, Any], ...] = ()  # more options of Triton's compiler


class Runner(Protocol):
    """What brings a kernel to execution; tests put an emulator here."""

    def arch(self, device: torch.device) -> str:
        """What kernels are compiled for: "sm_90", "gfx942" or INTERPRETER."""

    def run(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        arguments: dict[str, Any],
        constants: dict[str, Any],
        config: Config,
    ) -> None:
        """Execute the kernel; arguments are tensors, None and scalars by parameter name."""


class _Triton:
    """Triton's own way: its interpreter where that is switched on, else the GPU."""

    def arch(self, device: torch.device) -> str:
        return INTERPRETER if interpreted() else _arch(device)

    def run(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        arguments: dict[str, Any],
        constants: dict[str, Any],
        config: Config,
    ) -> None:
        options: dict[str, Any] = {}
        if not interpreted():
            options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            options.update(config.extra)
        kernel[grid](**arguments, **constants, **options)


_runner: Runner = _Triton()


def arch_of(device: torch.device) -> str:
    """What kernels for tensors on this device are compiled for."""
    return _runner.arch(device)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, Any],
    constants: dict[str, Any],
    config: Config,
) -> None:
    """Start `kernel` on the current stream; nothing happens on an empty grid.

    Args:
        kernel: a function decorated with triton.jit.
        grid: how many programs, up to three dimensions.
        arguments: at least the parameters of the kernel; what it does not have is left out.
        constants: the same for its tl.constexpr parameters.
        config: compiler options.
    """
    if 0 in grid:
        return
    names = parameter_names(kernel)
    _runner.run(
        kernel,
        grid,
        {name: value for name, value in arguments.items() if name in names},
        {name: value for name, value in constants.items() if name in names},
        config,
    )


@contextmanager
def using(runner: Runner) -> Iterator[None]:
    """Let another runner execute the kernels meanwhile."""
    global _runner
    before, _runner = _runner, runner
    try:
        yield
    finally:
        _runner = before


@functools.cache
def parameter_names(kernel: Any) -> frozenset[str]:
    return frozenset(kernel.arg_names)


@functools.cache
def interpreted() -> bool:
    """Whether TRITON_INTERPRET was set when the kernels were decorated."""
    return isinstance(_probe, InterpretedFunction)


@functools.cache
def _arch(device: torch.device) -> str:
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@triton.jit
def _probe():
    pass
