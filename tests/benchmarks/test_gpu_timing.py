"""Interleaved timing on a GPU's clock, which here only the timed calls move."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import pytest

from fused_attention.benchmarks.gpu_timing import WARM_UPS, time_interleaved_on_gpu


class FakeClock:
    """Calls return the seconds that they take."""

    def seconds(self, call: Callable[[], object]) -> float:
        return float(call() or 0.0)


def calls_of(log: list[str], **seconds: float) -> dict[str, Callable[[], float]]:
    def named(name: str) -> Callable[[], float]:
        def call() -> float:
            log.append(name)
            return seconds[name]

        return call

    return {name: named(name) for name in seconds}


def test_each_is_called_once_per_round_in_rotating_order() -> None:
    log: list[str] = []
    calls = calls_of(log, a=0.1, b=0.2, c=0.3)
    timings = time_interleaved_on_gpu(calls, {}, FakeClock(), 0.0, min_rounds=3)
    warm_ups = "".join(name * WARM_UPS for name in "abc")
    assert "".join(log) == warm_ups + "abc" + "bca" + "cab"
    assert timings["b"].samples == (0.2, 0.2, 0.2)
    assert timings["b"].calls_per_sample == 1


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, 5), (3.1, 10), (1e9, 100)])
def test_rounds_follow_the_budget_within_their_limits(budget_s: float, rounds: int) -> None:
    calls = calls_of([], a=0.1, b=0.2)
    timings = time_interleaved_on_gpu(calls, {}, FakeClock(), budget_s)
    assert len(timings["a"].samples) == rounds


def test_what_surrounds_a_call_is_entered_for_every_sample_of_it_alone() -> None:
    log: list[str] = []

    @contextmanager
    def around():
        log.append("(")
        yield
        log.append(")")

    calls = calls_of(log, a=0.1, b=0.1)
    time_interleaved_on_gpu(calls, {"b": around}, FakeClock(), 0.0, min_rounds=1, max_rounds=1)
    assert "".join(log) == "a" * WARM_UPS + "(b)" * WARM_UPS + "a(b)"
