"""Which of several backends runs a problem, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar


class Question(Protocol):
    """What backends are asked about: a call as plain numbers, which prints itself."""

    @property
    def device_type(self) -> str: ...

    def as_dict(self) -> dict[str, Any]: ...


class Candidate(Protocol):
    """What may be chosen; it says of a problem why it cannot run it."""

    @property
    def NAME(self) -> str: ...  # noqa: N802

    @property
    def DEVICE_TYPES(self) -> tuple[str, ...]: ...  # noqa: N802  # made for these; empty: for any

    def why_not(self, problem: Any) -> Sequence[str]:
        """Every reason why this backend cannot run `problem`; empty if it can."""


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)
Ask = Callable[[AnyCandidate, Any], Sequence[str]]


class Explanation(NamedTuple):
    """Which backend a call would use, and what speaks against each of the others."""

    problem: Any  # a Question
    chosen: str | None  # None: no backend that may be chosen can run the problem
    reasons: dict[str, list[str]]  # per backend, best first; empty: it can run the problem
    made_for_it: tuple[str, ...]  # backends made for this kind of device

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
        told = [f"{name}: {', '.join(self.reasons[name])}" for name in self.made_for_it]
        return f"no fused kernel can ({'; '.join(told) or f'none runs on {device} tensors'})"

    def __str__(self) -> str:
        width = max(map(len, ("problem", *self.reasons)))
        lines = [("problem", str(self.problem)), ("chosen", self.chosen or "none")]
        for name, reasons in self.reasons.items():
            lines += zip([name, *[""] * len(reasons)], reasons or ["can run it"], strict=False)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in lines)


def why_not(candidate: Candidate, problem: Any) -> Sequence[str]:
    """How candidates are asked where they answer one kind of question."""
    return candidate.why_not(problem)


def named(name: str, candidates: Sequence[AnyCandidate]) -> AnyCandidate:
    """The candidate of this name.

    Raises:
        ValueError: there is none.
    """
    for candidate in candidates:
        if name == candidate.NAME:
            return candidate
    names = ", ".join(repr(candidate.NAME) for candidate in candidates)
    raise ValueError(f"backend: must be one of {names} or None, got {name!r}")


def choose(
    problem: Question,
    candidates: Sequence[AnyCandidate],
    backend: str | None = None,
    ask: Ask[AnyCandidate] = why_not,
) -> AnyCandidate:
    """The first candidate that can run `problem`, or the one asked for.

    Args:
        problem: the call.
        candidates: best first.
        backend: a candidate's name; None lets the order decide.
        ask: gives a candidate's reasons against a problem.

    Raises:
        ValueError: no candidate has this name.
        NotImplementedError: the one asked for cannot run the problem, or none can; the message
            holds every reason.
    """
    if backend is not None:
        forced = named(backend, candidates)
        reasons = ask(forced, problem)
        if reasons:
            why = "; ".join(reasons)  # stands alone too: a compiler's trace shows the first line
            _refuse(f"backend {backend!r} cannot run this: {why}", problem, candidates, ask)
        return forced
    for candidate in candidates:
        if not ask(candidate, problem):
            return candidate
    _refuse("no backend can run this", problem, candidates, ask)


def explain(
    problem: Question,
    candidates: Sequence[AnyCandidate],
    backend: str | None = None,
    ask: Ask[AnyCandidate] = why_not,
) -> Explanation:
    """Ask every candidate about `problem`; with `backend`, that one alone may be chosen.

    Raises:
        ValueError: no candidate has this name.
    """
    allowed = candidates if backend is None else (named(backend, candidates),)
    reasons = {one.NAME: list(ask(one, problem)) for one in candidates}
    chosen = next((one.NAME for one in allowed if not reasons[one.NAME]), None)
    made = tuple(one.NAME for one in candidates if problem.device_type in one.DEVICE_TYPES)
    return Explanation(problem, chosen, reasons, made)


def _refuse(
    rule: str, problem: Question, candidates: Sequence[AnyCandidate], ask: Ask[AnyCandidate]
) -> NoReturn:
    raise NotImplementedError(f"{rule}\n{explain(problem, candidates, None, ask)}")
