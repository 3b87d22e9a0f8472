"""Microkernels, one for every collective instruction, with results worked out by hand.

What is expected comes from the tables of the PTX manual, never from the emulator, and is compared
with the emulator in the tests and with a GPU by `python -m ptxsim.conformance`.
"""

from __future__ import annotations

from . import barriers, copies, products, scalars, tiles, warps
from .probe import Case

__all__ = ["Case", "all_cases"]


def all_cases() -> list[Case]:
    """Every case, sorted by what it is about."""
    families = (warps, tiles, products, copies, barriers, scalars)
    return [case for family in families for case in family.cases()]
