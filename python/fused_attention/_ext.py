"""Loads the compiled library, once, when a backend first asks for it; never at import."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

LIBRARY_FOLDER = Path(__file__).parent / "lib"
ISA_VARIABLE = "FUSED_ATTENTION_CPU_ISA"


@functools.cache
def load_error(name: str) -> str | None:
    """Load libfused_attention_<name>.so; None when its operators are there, else why not.

    Args:
        name: "cpu".
    """
    path = LIBRARY_FOLDER / f"libfused_attention_{name}.so"
    if not path.exists():
        return f"{path.name} has not been built (reinstall with a C++17 compiler at hand)"
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


# torch.compile takes the answer as a constant instead of tracing into the file system. This is
# what torch.compiler.assume_constant_result sets; calling that would import the compiler here.
cpu_unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]
