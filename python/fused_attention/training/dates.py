"""Synthetic translation: dates as people write them, in four languages, and the same in ISO 8601.

Made, not fetched: whoever asks gets the same dates. No form leaves open which number is the month
(the day stands first in all that have no name), so every date has one right answer.
"""

from __future__ import annotations

import datetime
from typing import NamedTuple

import torch

from fused_attention.training.seeds import generator

COUNT = 24_000
FIRST, DAYS = datetime.date(1900, 1, 1), 73_049  # up to the end of 2099


class Language(NamedTuple):
    """How dates are written in a language, in lower case.

    In a form {d} is the day, {m} the month, {y} the year, {dd} and {mm} have two digits, {month}
    and {day} are names, {mon} is the beginning of the month's name.
    """

    months: str  # names, parted by spaces
    days: str  # from Monday on
    forms: tuple[str, ...]
    first: str = "1"  # how {d} writes the first day of a month


LANGUAGES = (
    Language(  # English
        "january february march april may june july august september october november december",
        "monday tuesday wednesday thursday friday saturday sunday",
        (
            *("{d} {month} {y}", "{month} {d}, {y}", "{day} {d} {month} {y}", "{month} {d} {y}"),
            *("{day}, {month} {d}, {y}", "{d} {mon} {y}", "{mon} {d} {y}", "{dd}-{mon}-{y}"),
        ),
    ),
    Language(  # French
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "lundi mardi mercredi jeudi vendredi samedi dimanche",
        ("{d} {month} {y}", "{day} {d} {month} {y}", "le {d} {month} {y}", "{dd}/{mm}/{y}"),
        first="1er",
    ),
    Language(  # German
        "januar februar märz april mai juni juli august september oktober november dezember",
        "montag dienstag mittwoch donnerstag freitag samstag sonntag",
        ("{d}. {month} {y}", "{day}, {d}. {month} {y}", "{d}.{m}.{y}", "{dd}.{mm}.{y}"),
    ),
    Language(  # Spanish
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "lunes martes miércoles jueves viernes sábado domingo",
        ("{d} de {month} de {y}", "{day}, {d} de {month} de {y}", "{d}/{m}/{y}"),
    ),
)
STYLES = tuple((language, form) for language in LANGUAGES for form in language.forms)


def written(date: datetime.date, language: Language, form: str) -> str:
    """A date in one of a language's forms."""
    month = language.months.split()[date.month - 1]
    return form.format(
        d=language.first if date.day == 1 and "{month}" in form else date.day,
        dd=f"{date.day:02}",
        m=date.month,
        mm=f"{date.month:02}",
        y=date.year,
        month=month,
        mon=month[:3],
        day=language.days.split()[date.weekday()],
    )


def date_pairs(count: int = COUNT, seed: int = 0) -> list[tuple[str, str]]:
    """`count` dates at random, each in one form at random, and their ISO dates."""
    random = generator("dates", seed)
    days = torch.randint(DAYS, (count,), generator=random).tolist()
    styles = torch.randint(len(STYLES), (count,), generator=random).tolist()
    pairs = []
    for day, style in zip(days, styles, strict=True):
        date = FIRST + datetime.timedelta(days=day)
        pairs.append((written(date, *STYLES[style]), date.isoformat()))
    return pairs
