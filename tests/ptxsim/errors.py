"""What the emulator reports."""

from __future__ import annotations


class SimulationError(Exception):
    """The kernel did something wrong; the message says what, which warp, and where."""

    kind = "error"


class MemoryFault(SimulationError):
    """An access outside every buffer, a misaligned one, or a read of what nobody wrote."""

    kind = "memory"


class DataRace(SimulationError):
    """Two unordered accesses to one location, or an access during an asynchronous copy."""

    kind = "race"


class BarrierMisuse(SimulationError):
    """A wrong count, a divergent collective, too many arrivals, an uninitialised mbarrier."""

    kind = "barrier"


class Deadlock(SimulationError):
    """No warp can go on; the message lists where every one of them stands."""

    kind = "deadlock"


class UnknownInstruction(SimulationError):
    """An instruction or a form of it that the emulator does not execute."""

    kind = "unknown"
