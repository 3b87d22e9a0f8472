"""A report in a few sentences."""

from __future__ import annotations

import statistics
from typing import Any

from .cases import Case
from .contenders import LABELS, NAIVE, OURS, sdpa_needs_mask
from .memory import MIB, MemoryResult
from .run import Report


def headlines(report: Report) -> list[str]:
    """What a report says: wrong results first, then speed against each peer, then memory."""
    peers = dict.fromkeys(name for result in report["results"] for name in result["speedup"])
    return [
        *_wrong(report),
        *_dropped(report),
        *(line for peer in peers for line in _speed(report, peer)),
        *_memory(report),
    ]


def _dropped(report: Report) -> list[str]:
    names = report.get("dropped", [])
    return [f"NOT TIMED, out of time: {', '.join(names)}"] if names else []


def _wrong(report: Report) -> list[str]:
    lines = []
    for result in report["results"]:
        for name, entry in result["contenders"].items():
            if entry["status"] in ("WRONG", "failed"):
                why = entry.get("reason") or too_far_off(
                    entry["accuracy_worst"], entry["accuracy_ratio"]
                )
                lines.append(f"NOT TIMED: {LABELS[name]} on {result['name']}: {why}")
    return list(dict.fromkeys(lines))


def too_far_off(tensor: str, ratio: float | None) -> str:
    """What is wrong with a tensor whose error is `ratio` times the allowed one."""
    if ratio is None:
        return f"{tensor} has NaN or infinities that the reference has not"
    return f"{tensor} is {ratio:.2f} times as far off as allowed"


def _speed(report: Report, peer: str) -> list[str]:
    """Speed-ups against a peer; cases where it has to read a mask make a line of their own."""
    plain: list[dict[str, Any]] = []
    masked: list[dict[str, Any]] = []
    for result in report["results"]:
        if peer in result["speedup"]:
            with_mask = peer != NAIVE and sdpa_needs_mask(Case.from_dict(result["case"]))
            (masked if with_mask else plain).append(result)
    lines = [_range(f"against {LABELS[peer]}", peer, plain)] if plain else []
    if masked:
        lines.append(_range(f"against {LABELS[peer]} with a window as boolean mask", peer, masked))
    return lines


def _range(what: str, peer: str, results: list[dict[str, Any]]) -> str:
    ratios = {result["name"]: result["speedup"][peer] for result in results}
    speedups = [result["speedup"][peer] for result in results]
    best = max(ratios, key=lambda name: ratios[name])
    if len(speedups) == 1:
        return f"{what}: {speedups[0]:.1f} times the speed ({best})"
    return (
        f"{what}: {min(speedups):.1f} to {max(speedups):.1f} times the speed, "
        f"median {statistics.median(speedups):.1f} over {len(speedups)} measurements "
        f"(most: {best})"
    )


def _memory(report: Report) -> list[str]:
    lines = []
    results = [MemoryResult.from_dict(values) for values in report["memory"]]
    for backward in (False, True):
        ours = [
            r
            for r in results
            if r.contender == OURS and r.case.backward == backward and r.ratio is not None
        ]
        if not ours:
            continue
        longest = max(ours, key=lambda r: r.case.len_q)
        assert longest.total_bytes is not None  # its ratio is known
        what = "forward and backward" if backward else "forward"
        lines.append(
            f"memory at length {longest.case.len_q}, one head: {what} peaks at "
            f"{longest.total_bytes / MIB:.1f} MiB with its inputs, {longest.ratio:.2f} times "
            "inputs and outputs"
        )
    return lines
