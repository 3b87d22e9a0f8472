"""Synthetic dates: right, with one answer each, and the same for everybody."""

from __future__ import annotations

import datetime

import pytest

from fused_attention.training.dates import DAYS, FIRST, STYLES, date_pairs, written

DAY = datetime.date(2018, 5, 9)  # a Wednesday


def test_dates_are_written_as_people_do():
    forms = {written(DAY, *style) for style in STYLES}
    assert forms >= {
        *("9 may 2018", "wednesday, may 9, 2018", "09-may-2018", "mercredi 9 mai 2018"),
        *("09/05/2018", "9. mai 2018", "mittwoch, 9. mai 2018", "9.5.2018"),
        *("9 de mayo de 2018", "miércoles, 9 de mayo de 2018"),
    }
    first = {written(datetime.date(1999, 3, 1), *style) for style in STYLES}
    assert {"le 1er mars 1999", "01/03/1999", "1 march 1999", "1. märz 1999"} <= first


def test_every_date_has_one_answer():
    found = {}
    for n in range(0, DAYS, 11):
        date = FIRST + datetime.timedelta(days=n)
        for style in STYLES:
            assert found.setdefault(written(date, *style), date) == date
    assert (FIRST + datetime.timedelta(days=DAYS)).year == 2100


def test_the_same_dates_for_everybody():
    pairs = date_pairs(400)
    assert len(pairs) == 400
    assert pairs == date_pairs(400) and pairs != date_pairs(400, seed=1)
    for _, iso in pairs:
        assert datetime.date.fromisoformat(iso) >= FIRST
    assert len({iso for _, iso in pairs}) == pytest.approx(400, abs=5)
