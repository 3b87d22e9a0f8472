"""Compiles launches of triton_kernels for GPUs that are not here.

A second copy of the kernels is loaded for that, as the compiler takes them: the first one may have
been decorated for Triton's interpreter. Signature, divisibility and constants of a launch are found
by Triton's own code from the arguments of the launch.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

ROOM = "fused_attention.triton_kernels"
CACHE = Path(__file__).resolve().parents[2] / "build" / "triton"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class _Device:
    """What Triton asks a driver about while it compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        return self.target  # kernels are kept for each device, so for each target

    def get_current_stream(self, device: Any) -> int:
        return 0


@contextmanager
def kernels_for_compiler() -> Iterator[None]:
    """`import fused_attention.triton_kernels` gives the second copy meanwhile."""
    package = importlib.import_module("fused_attention")
    own = getattr(package, "triton_kernels", None)
    copy = _copied_modules()
    before = _taken_modules()
    sys.modules.update(copy)
    package.triton_kernels = copy[ROOM]
    try:
        yield
    finally:
        _taken_modules()
        sys.modules.update(before)
        if own is None:
            del package.triton_kernels
        else:
            package.triton_kernels = own


def kernel_module(name: str) -> ModuleType:
    """A module of the second copy, such as "launch"."""
    return _copied_modules()[f"{ROOM}.{name}"]


@functools.cache
def _copied_modules() -> dict[str, ModuleType]:
    before = _taken_modules()
    with knobs.runtime.scope():
        knobs.runtime.interpret = False
        package = importlib.import_module(ROOM)
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            if path.stem != "__init__":
                importlib.import_module(f"{ROOM}.{path.stem}")
    copy = _taken_modules()
    sys.modules.update(before)
    return copy


def _taken_modules() -> dict[str, ModuleType]:
    """The modules of the room, which are no longer known to Python afterwards."""
    names = [name for name in sys.modules if name == ROOM or name.startswith(f"{ROOM}.")]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def _compiler_for(target: GPUTarget) -> Iterator[None]:
    """Triton compiles for the target, with its own library functions as it wants them."""
    swapped = []
    for name, module in list(sys.modules.items()):
        if name == "triton.language" or name.startswith("triton.language."):
            for attribute, value in vars(module).items():
                if isinstance(value, InterpretedFunction):
                    swapped.append((module, attribute, value))
    for module, attribute, value in swapped:
        setattr(module, attribute, _library_function(value.fn))
    active = driver._active  # None until a GPU is asked for
    driver.set_active(_Device(target))
    try:
        with knobs.runtime.scope(), knobs.cache.scope():
            knobs.runtime.interpret = False
            knobs.cache.dir = str(CACHE)
            yield
    finally:
        driver.set_active(active)
        for module, attribute, value in swapped:
            setattr(module, attribute, value)


@functools.cache
def _library_function(function: Any) -> JITFunction:
    return JITFunction(function)


def compile_launch(
    kernel: Any, arguments: dict[str, Any], constants: dict[str, Any], config: Any, arch: str
) -> Any:
    """Triton's CompiledKernel of a launch, whose arguments may be tensors on the CPU."""
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **dict(config.extra)}
    with _compiler_for(TARGETS[arch]):
        return kernel.run(grid=None, warmup=True, **arguments, **constants, **options)


class Compiler:
    """A runner of triton_kernels.launch that compiles and executes nothing.

    Attributes:
        compiled: what was compiled, in the order of the launches.
    """

    def __init__(self, arch: str) -> None:
        self._arch = arch
        self.compiled: list[Any] = []

    def arch(self, device: torch.device) -> str:
        return self._arch

    def run(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        arguments: dict[str, Any],
        constants: dict[str, Any],
        config: Any,
    ) -> None:
        self.compiled.append(compile_launch(kernel, arguments, constants, config, self._arch))


@contextmanager
def running(runner: Compiler) -> Iterator[Compiler]:
    """The Triton backend's kernels run by `runner` meanwhile."""
    with kernels_for_compiler(), kernel_module("launch").using(runner):
        yield runner
