"""Which backend runs an attention or a step of decoding, and why not the others."""

from __future__ import annotations

from fused_attention import selection
from fused_attention.backends import ORDER, Backend
from fused_attention.decode_problem import DecodeProblem
from fused_attention.problem import Problem
from fused_attention.selection import Explanation
from fused_attention.support import backends, reasons_against, support_matrix

__all__ = ["Explanation", "backends", "explain", "select", "support_matrix"]


def select(problem: Problem | DecodeProblem, backend: str | None = None) -> Backend:
    """The first backend that can run `problem`, or the one asked for; see `choose`."""
    return selection.choose(problem, ORDER, backend, reasons_against)


def explain(problem: Problem | DecodeProblem, backend: str | None = None) -> Explanation:
    """Ask every backend about `problem`; with `backend`, that one alone may be chosen.

    Raises:
        ValueError: no backend has this name.
    """
    return selection.explain(problem, ORDER, backend, reasons_against)
