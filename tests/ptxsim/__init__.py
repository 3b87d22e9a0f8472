"""An emulator of PTX that executes GPU kernels on a CPU and reports what is wrong with them."""

from __future__ import annotations

from .errors import (
    BarrierMisuse,
    DataRace,
    Deadlock,
    MemoryFault,
    SimulationError,
    UnknownInstruction,
)
from .launch import Report, launch
from .memory import GlobalMemory

__all__ = [
    "BarrierMisuse",
    "DataRace",
    "Deadlock",
    "GlobalMemory",
    "MemoryFault",
    "Report",
    "SimulationError",
    "UnknownInstruction",
    "launch",
]
