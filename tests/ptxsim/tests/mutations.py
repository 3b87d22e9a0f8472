"""Edits of PTX text that take something away or change it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from ptxsim import SimulationError

Edit = Callable[[str], str]


def drop(opcode: str, number: int = 0) -> Edit:
    """Takes the number-th instruction away that begins with `opcode` (a regular expression)."""
    return change(opcode + r"[^;]*;", "", number)


def change(pattern: str, replacement: str, number: int = 0) -> Edit:
    """Changes the number-th place that fits the pattern; -1 is the last one."""

    def edit(ptx: str) -> str:
        found = list(re.finditer(pattern, ptx))
        assert found, f"{pattern} is nowhere in the PTX"
        match = found[number]
        return ptx[: match.start()] + match.expand(replacement) + ptx[match.end() :]

    return edit


def change_all(pattern: str, replacement: str) -> Edit:
    """Changes every place that fits the pattern."""

    def edit(ptx: str) -> str:
        changed, count = re.subn(pattern, replacement, ptx)
        assert count, f"{pattern} is nowhere in the PTX"
        return changed

    return edit


def assert_found(run: Callable[[], float], kind: str) -> None:
    """run() gives an error in budgets, or raises: what the emulator reports, or an AssertionError
    of the budget.

    kind: "numbers" (beyond the budget) or a SimulationError.kind, several with a | in between where
    the schedule decides what is seen first.
    """
    try:
        error = run()
    except AssertionError:
        error = float("inf")
    except SimulationError as report:
        assert report.kind in kind.split("|"), f"{report.kind}, not {kind}, was reported: {report}"
        return
    if "numbers" not in kind.split("|"):
        pytest.fail(f"nothing was reported, the error is {error:.2g} budgets")
    assert error > 1, f"the error is {error:.2g} budgets, nobody would see it"


def inside(parts: tuple[str, ...], edit: Edit) -> Edit:
    """The edit on the kernel alone whose mangled name contains all of `parts`."""

    def edited(ptx: str) -> str:
        entries = [(m.start(), m[1]) for m in re.finditer(r"\.entry\s+(\w+)", ptx)]
        entries.append((len(ptx), ""))
        for (start, name), (stop, _) in zip(entries, entries[1:], strict=False):
            if all(part in name for part in parts):
                return ptx[:start] + edit(ptx[start:stop]) + ptx[stop:]
        raise AssertionError(f"no kernel has {parts} in its name")

    return edited
