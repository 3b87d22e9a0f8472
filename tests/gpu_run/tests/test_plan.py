"""How the time is dealt out."""

from __future__ import annotations

import pytest
from gpu_run.context import OK, Result, Step
from gpu_run.plan import RESERVE_S, limit, plan
from gpu_run.steps import steps

NAMES = [step.name for step in steps(carried=True)]


def step(name: str, least_s: float, most_s: float) -> Step:
    return Step(name, name, least_s, most_s, lambda context, limit_s: Result(OK, ""))


@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("seconds", [60, 120, 240, 300, 480])
def test_the_plan_fits_and_keeps_the_most_important(seconds, carried):
    shares = plan(steps(carried), seconds)
    assert sum(share.limit_s or 0.0 for share in shares) <= seconds - RESERVE_S + 1e-6
    kept = [share.limit_s is not None for share in shares]
    assert kept == sorted(kept, reverse=True), "nothing is kept for which more important is dropped"
    for share in shares:
        assert share.limit_s is None or share.step.least_s <= share.limit_s <= share.step.most_s


def test_everything_fits_into_the_eight_minutes():
    for carried in (True, False):
        assert all(share.limit_s is not None for share in plan(steps(carried), 480))


def test_with_half_the_time_correctness_is_left():
    kept = [share.step.name for share in plan(steps(carried=True), 240) if share.limit_s]
    assert {"smoke", "matrix", "memcheck", "races"} <= set(kept)
    assert "racecheck" not in kept


def test_spare_time_is_shared():
    todo = [step("a", 10, 30), step("b", 10, 50), step("c", 20, 20)]
    assert limit(todo, RESERVE_S + 40) == 10
    assert limit(todo, RESERVE_S + 70) == 20
    assert limit(todo, RESERVE_S + 1000) == 30
    assert limit(todo, RESERVE_S + 35) == pytest.approx(10 + 15 * 20 / 60), "c is dropped"
    assert limit(todo, RESERVE_S + 9) is None


def test_unused_time_reaches_the_later_steps():
    """Racecheck is dropped by the plan and runs after all if the steps before it were quick."""
    todo = steps(carried=True)
    assert plan(todo, 240)[-1].limit_s is None
    assert limit(todo[-1:], 200) == todo[-1].most_s


def test_every_step_has_a_name_of_its_own_and_known_needs():
    assert len(set(NAMES)) == len(NAMES)
    for index, one in enumerate(steps(carried=True)):
        assert set(one.needs) <= set(NAMES[:index])
