"""Learning rates against their formulas."""

from __future__ import annotations

import math

import pytest

from fused_attention.training import Settings
from fused_attention.training.schedules import vaswani_learning_rate


def test_vaswanis_equation():
    dim, warmup = 512, 4000
    peak = vaswani_learning_rate(dim, warmup)
    settings = Settings(10**6, learning_rate=peak, schedule="inverse_sqrt", warmup=warmup)
    for number in (1, 100, 3999, 4000, 4001, 100_000):
        wanted = dim**-0.5 * min(number**-0.5, number * warmup**-1.5)
        assert settings.learning_rate_at(number - 1) == pytest.approx(wanted, rel=1e-12)


def test_cosine():
    settings = Settings(2000, learning_rate=1.0, warmup=100, final_ratio=0.1)
    rates = [settings.learning_rate_at(step) for step in range(2001)]
    assert rates[100] == max(rates) == 1.0
    assert rates[:101] == sorted(rates[:101]) and rates[0] > 0
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[1050] == pytest.approx(0.1 + 0.9 / 2)
    assert rates[2000] == pytest.approx(0.1)
    assert settings.learning_rate_at(10**6) == pytest.approx(0.1)


def test_without_warmup():
    for schedule in ("constant", "cosine", "inverse_sqrt"):
        settings = Settings(10, learning_rate=1.0, warmup=0, schedule=schedule)
        assert settings.learning_rate_at(0) == 1.0
    constant = Settings(10, learning_rate=2.0, warmup=4, schedule="constant")
    assert [constant.learning_rate_at(step) for step in range(6)] == [0.5, 1, 1.5, 2, 2, 2]
    assert math.isclose(Settings(5, warmup=5).learning_rate_at(4), 1e-3 * 5 / 6)
