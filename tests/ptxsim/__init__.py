"""An emulator of PTX that executes GPU kernels on a CPU and reports what is wrong with them."""

from __future__ import annotations

from .errors import (
    AccessError,
    BarrierError,
    DeadlockError,
    RaceError,
    SimulationError,
    UnknownInstructionError,
)
from .launch import Report, launch, unknown_instructions
from .memory import GlobalMemory

__all__ = [
    "BarrierError",
    "RaceError",
    "DeadlockError",
    "GlobalMemory",
    "AccessError",
    "Report",
    "SimulationError",
    "UnknownInstructionError",
    "launch",
    "unknown_instructions",
]
