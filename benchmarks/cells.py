"""Numbers of a report as cells of a table."""

from __future__ import annotations

from typing import Any


def time_cell(entry: dict[str, Any]) -> str:
    """Milliseconds of a contender, or its status where it has none."""
    if entry["status"] == "ok":
        milliseconds = entry["median_s"] * 1e3
        return f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:.0f}"
    return "—" if entry["status"] == "skipped" else str(entry["status"])


def times_cell(ratio: float | None) -> str:
    return "—" if ratio is None else f"{ratio:.2f}x"


def percent(share: float | None) -> str:
    return "—" if share is None else f"{share * 100:.0f} %"
