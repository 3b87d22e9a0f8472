"""What served each attention call: one line per call site and problem, when asked for.

`FUSED_ATTENTION_LOG=1` in the environment, or `enable()`, makes every drop-in door report to the
logger "fused_attention"; without it a report costs one comparison.
"""

from __future__ import annotations

import logging
import os
import sys
from types import FrameType
from typing import Any

import torch

from fused_attention.decode_problem import DecodeProblem
from fused_attention.decoding import explain_with_kv_cache
from fused_attention.functional import explain
from fused_attention.problem import Problem

LOGGER = logging.getLogger("fused_attention")
# Frames in these folders are not where the user called.
_INSIDE = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep for path in (__file__, torch.__file__)
)
_seen: set[str] = set()

enabled = False


def enable(on: bool = True) -> None:
    """Start (or stop) reporting; lines that were reported before are reported again.

    Without any logging configured the lines go to stderr.
    """
    global enabled
    if on:
        # Lets the function run while torch.compile traces; the import is too slow to do it always.
        torch.compiler.assume_constant_result(_report_traced)
        if not LOGGER.hasHandlers():
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            LOGGER.addHandler(handler)
        if LOGGER.level == logging.NOTSET:
            LOGGER.setLevel(logging.INFO)
        _seen.clear()
    enabled = on


def served(door: str, problem: Problem | DecodeProblem | None, outcome: str) -> None:
    """Report who serves the call that is being made.

    Args:
        door: the name of the way in, such as "sdpa".
        problem: the call; None if the original function serves it.
        outcome: the backend's name; without a problem the reason why it is not ours.
    """
    if not enabled:
        return
    if torch.compiler.is_compiling():  # sizes may be symbols there
        _report_traced(door, outcome, problem is not None)
    else:
        _report(
            _call_site(sys._getframe(1)), door, outcome, None if problem is None else str(problem)
        )


def attended(door: str, *args: Any, **options: Any) -> None:
    """Report a call of `attention` or `attention_varlen` with these arguments.

    Raises:
        TypeError, ValueError: as the call itself.
    """
    if enabled:
        explanation = explain(*args, **options)
        served(door, explanation.problem, explanation.chosen or "none")


def decoded(door: str, *args: Any, **options: Any) -> None:
    """Report a call of `attention_with_kv_cache` with these arguments.

    Raises:
        TypeError, ValueError: as the call itself.
    """
    if enabled:
        explanation = explain_with_kv_cache(*args, **options)
        served(door, explanation.problem, explanation.chosen or "none")


def _report_traced(door: str, outcome: str, ours: bool) -> None:
    """Runs while torch.compile traces, once per graph: Dynamo knows the user's frames."""
    stack = torch._guards.TracingContext.extract_stack()
    sites = [f"{x.filename}:{x.lineno}" for x in stack if not x.filename.startswith(_INSIDE)]
    site = sites[-1] if sites else _call_site(sys._getframe(1))
    _report(site, door, outcome, "in a compiled graph" if ours else None)


def _report(site: str, door: str, outcome: str, problem: str | None) -> None:
    what = f"torch's own, because {outcome}" if problem is None else f"{outcome}: {problem}"
    line = f"{site}: {door} -> {what}"
    if line not in _seen:
        _seen.add(line)
        LOGGER.info("%s", line)


def _call_site(frame: FrameType) -> str:
    """file:line of the innermost frame that is neither ours nor torch's."""
    outer: FrameType | None = frame
    while outer is not None:
        if not outer.f_code.co_filename.startswith(_INSIDE):
            return f"{outer.f_code.co_filename}:{outer.f_lineno}"
        outer = outer.f_back
    return "unknown"


if os.environ.get("FUSED_ATTENTION_LOG", "0") not in ("", "0"):
    enable()
