"""Interleaved timing, on a clock that only the timed calls move."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fused_attention.benchmarks import timing
from fused_attention.benchmarks.timing import LoadMonitor, Timing, speedup, time_interleaved


class Clock:
    """Stands in for perf_counter_ns; `sleeper` makes calls that take a known time."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[str] = []

    def sleeper(self, name: str, *seconds: float) -> Callable[[], None]:
        """A call that takes the given times one after the other, then the last one for ever."""
        durations: Iterator[float] = iter(seconds)
        last = seconds[-1]

        def call() -> None:
            self.calls.append(name)
            self.now += round(next(durations, last) * 1e9)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: clock.now)
    return clock


def test_each_contender_is_called_once_per_round_in_rotating_order(clock: Clock) -> None:
    calls = {name: clock.sleeper(name, 0.1) for name in "abc"}
    timings = time_interleaved(calls, budget_s=0.0, min_rounds=4)
    assert "".join(clock.calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert {len(t.samples) for t in timings.values()} == {4}
    assert timings["b"].median_s == pytest.approx(0.1)


def test_rounds_follow_the_budget_within_their_limits(clock: Clock) -> None:
    def rounds(budget_s: float) -> int:
        calls = {name: clock.sleeper(name, 0.05) for name in "ab"}
        return len(time_interleaved(calls, budget_s, min_rounds=3, max_rounds=8)["a"].samples)

    assert [rounds(budget) for budget in (0.0, 0.55, 100.0)] == [3, 5, 8]


def test_short_calls_are_batched_and_settled(clock: Clock) -> None:
    timings = time_interleaved({"short": clock.sleeper("short", 1e-4)}, budget_s=0.0, min_rounds=2)
    assert timings["short"].calls_per_sample == 10
    assert timings["short"].median_s == pytest.approx(1e-4)
    assert len(clock.calls) == 2 + 2 * (1 + 10)  # warm-up, then per round: settle, batch


def test_warm_up_is_not_a_sample(clock: Clock) -> None:
    calls = {"a": clock.sleeper("a", 9.0, 0.1)}
    assert time_interleaved(calls, budget_s=0.0)["a"].samples == pytest.approx((0.1, 0.1, 0.1))


def test_speedup_is_taken_inside_rounds() -> None:
    ours = Timing((1.0, 10.0, 1.0), 1)  # a slow round is slow for both
    peer = Timing((2.0, 20.0, 3.0), 1)
    assert speedup(ours, peer) == 2.0


def test_spread_is_relative_to_the_median() -> None:
    assert Timing((2.0, 2.0, 2.0, 2.0, 2.0), 1).spread == 0.0
    assert Timing((1.0, 2.0, 3.0), 1).spread == 1.0


def test_load_is_what_others_used(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(100.0, 5.0, 40.0), (130.0, 6.0, 50.0)])
    seconds = iter([0.0, 10.0])
    monkeypatch.setattr(timing, "_cpu_seconds", lambda: next(readings))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(seconds))
    load = LoadMonitor().start().report()
    assert load["other_cores"] == 2.0  # 30 busy seconds, 10 of them our own, in 10 seconds
    assert load["stolen_cores"] == 0.1


def test_load_is_unknown_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_cpu_seconds", lambda: None)
    load = LoadMonitor().start().report()
    assert load["other_cores"] is None
    assert load["stolen_cores"] is None
