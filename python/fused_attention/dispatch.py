"""Which backend runs a problem, and why not the others."""

from __future__ import annotations

from typing import Any, NamedTuple

from fused_attention.backends import ORDER, Backend, get
from fused_attention.decode_problem import DecodeProblem
from fused_attention.problem import Problem
from fused_attention.support import backends, reasons_against, support_matrix

__all__ = ["Explanation", "backends", "explain", "select", "support_matrix"]


class Explanation(NamedTuple):
    """Which backend a call would use, and what speaks against each of the others."""

    problem: Problem | DecodeProblem
    chosen: str | None  # None: no backend that may be chosen can run the problem
    reasons: dict[str, list[str]]  # per backend, best first; empty: it can run the problem

    def as_dict(self) -> dict[str, Any]:
        """The explanation as JSON can hold it."""
        return {
            "problem": self.problem.as_dict(),
            "chosen": self.chosen,
            "reasons": self.reasons,
        }

    def refusals(self) -> str:
        """In one line, why none of the kernels made for this kind of device can run the problem."""
        device = self.problem.device_type
        made_for_it = [one.NAME for one in ORDER if device in one.DEVICE_TYPES]
        told = [f"{name}: {', '.join(self.reasons[name])}" for name in made_for_it]
        return f"no fused kernel can ({'; '.join(told) or f'none runs on {device} tensors'})"

    def __str__(self) -> str:
        width = max(map(len, ("problem", *self.reasons)))
        lines = [("problem", str(self.problem)), ("chosen", self.chosen or "none")]
        for name, reasons in self.reasons.items():
            lines += zip([name, *[""] * len(reasons)], reasons or ["can run it"], strict=False)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in lines)


def select(problem: Problem | DecodeProblem, backend: str | None = None) -> Backend:
    """The first backend that can run `problem`, or the one asked for.

    Args:
        problem: the call.
        backend: a backend's name; None lets the order decide.

    Raises:
        ValueError: no backend has this name.
        NotImplementedError: the backend asked for cannot run the problem, or none can; the
            message holds every reason.
    """
    if backend is not None:
        forced = get(backend)
        reasons = reasons_against(forced, problem)
        if reasons:
            why = "; ".join(reasons)  # stands alone too: a compiler's trace shows the first line
            raise NotImplementedError(
                f"backend {backend!r} cannot run this: {why}\n{explain(problem)}"
            )
        return forced
    for candidate in ORDER:
        if not reasons_against(candidate, problem):
            return candidate
    raise NotImplementedError(f"no backend can run this\n{explain(problem)}")


def explain(problem: Problem | DecodeProblem, backend: str | None = None) -> Explanation:
    """Ask every backend about `problem`; with `backend`, that one alone may be chosen.

    Raises:
        ValueError: no backend has this name.
    """
    allowed = ORDER if backend is None else (get(backend),)
    reasons = {candidate.NAME: reasons_against(candidate, problem) for candidate in ORDER}
    chosen = next((one.NAME for one in allowed if not reasons[one.NAME]), None)
    return Explanation(problem, chosen, reasons)
