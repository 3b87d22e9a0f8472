"""Loads the compiled library, once, when a backend first asks for it; never at import."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

LIBRARY_FOLDER = Path(__file__).parent / "lib"
ISA_VARIABLE = "FUSED_ATTENTION_CPU_ISA"
OLDEST_CAPABILITY = (8, 0)
_BUILT_WITH = {"cpu": "a C++17 compiler", "cuda": "nvcc and FUSED_ATTENTION_CUDA=1"}


@functools.cache
def load_error(name: str) -> str | None:
    """Load libfused_attention_<name>.so; None when its operators are there, else why not.

    Args:
        name: "cpu" or "cuda".
    """
    path = LIBRARY_FOLDER / f"libfused_attention_{name}.so"
    if not path.exists():
        return f"{path.name} has not been built (reinstall with {_BUILT_WITH[name]} at hand)"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded: {error}"
    return None


@functools.cache
def available_cpu_isas() -> tuple[str, ...]:
    """Instruction sets that the library has kernels for and this machine can run, best first."""
    if load_error("cpu") is not None:
        return ()
    return tuple(torch.ops.fused_attention.cpu_isas().split(","))


@functools.cache
def cpu_isa() -> str:
    """The instruction set in use: the best one, or what FUSED_ATTENTION_CPU_ISA forces.

    The variable is read once per process.

    Raises:
        RuntimeError: the library cannot be loaded.
        ValueError: the variable names a set that is not available here.
    """
    error = load_error("cpu")
    if error is not None:
        raise RuntimeError(error)
    available = available_cpu_isas()
    forced = os.environ.get(ISA_VARIABLE)
    if not forced:
        return available[0]
    if forced not in available:
        raise ValueError(f"{ISA_VARIABLE}: must be one of {', '.join(available)}, got {forced!r}")
    return forced


@functools.cache
def _cpu_unavailable() -> str | None:
    try:
        cpu_isa()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None


def cpu_unavailable() -> str | None:
    """Why the CPU library cannot be used, or None."""
    return _cpu_unavailable()


@functools.cache
def _cuda_without_device() -> tuple[str, ...]:
    """What speaks against the CUDA library before any device is looked at."""
    reasons = []
    error = load_error("cuda")
    if error is not None:
        reasons.append(error)
    elif driver := torch.ops.fused_attention.cuda_driver_error():
        reasons.append(driver)
    return (*reasons, *gpu_missing())


@functools.cache
def gpu_missing() -> tuple[str, ...]:
    """Why there is no GPU for this torch; empty if there is one. Never initialises CUDA."""
    if torch.version.cuda is None and torch.version.hip is None:
        return ("this torch is built without CUDA",)
    return () if torch.cuda.device_count() else ("no GPU was found",)


def gpu_too_old(oldest: tuple[int, int]) -> tuple[str, ...]:
    """Whether the current GPU is older than this compute capability.

    A device is asked only where torch has initialised CUDA already, as it has whenever there is a
    tensor on a GPU.
    """
    if torch.cuda.is_initialized():
        capability = torch.cuda.get_device_capability()
        if capability < oldest:
            have, need = (".".join(map(str, x)) for x in (capability, oldest))
            return (f"needs a GPU of compute capability {need} or newer, got {have}",)
    return ()


def cuda_unavailable() -> tuple[str, ...]:
    """Why the CUDA library cannot be used; empty if it can. Never initialises CUDA."""
    return _cuda_without_device() or gpu_too_old(OLDEST_CAPABILITY)


# torch.compile takes the answers as constants instead of tracing into the file system. This is
# what torch.compiler.assume_constant_result sets; calling that would import the compiler here.
cpu_unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]
cuda_unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]
