"""What the emulator reports."""

from __future__ import annotations


class SimulationError(Exception):
    """The kernel did something wrong; the message says what, which warp, and where."""

    kind = "error"


class AccessError(SimulationError):
    """An access outside every buffer, a misaligned one, or a read of what nobody wrote."""

    kind = "memory"


class RaceError(SimulationError):
    """Two unordered accesses to one location, or an access during an asynchronous copy."""

    kind = "race"


class BarrierError(SimulationError):
    """A wrong count, a divergent collective, too many arrivals, an uninitialised mbarrier."""

    kind = "barrier"


class DeadlockError(SimulationError):
    """No warp can go on; the message lists where every one of them stands."""

    kind = "deadlock"


class UnknownInstructionError(SimulationError):
    """An instruction or a form of it that the emulator does not execute."""

    kind = "unknown"
