"""Reads the band off a transformers mask function by running it on symbols instead of indices.

A mask function takes (batch, head, query, key) indices and says whether the key is visible. Given
symbols that stand for the two positions, its comparisons and `&` come out as a Span: the keys
visible before and after the diagonal. Whatever else it computes comes out as something else, and
the function is then no band. Nothing depends on how the function is called or built, and
torch.compile traces it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fused_attention.masks import UNBOUNDED, Band

MaskFunction = Callable[[Any, Any, Any, Any], Any]


@dataclass(frozen=True)
class Span:
    """Key k is visible to query q iff q - left <= k <= q + right, positions counted from 0."""

    left: int
    right: int

    device = None  # mask functions move their parts to each other's device

    def to(self, *_: Any) -> Span:
        return self

    def __and__(self, other: Any) -> Span | _Unknown:
        if not isinstance(other, Span):
            return UNKNOWN
        return Span(min(self.left, other.left), min(self.right, other.right))

    def __or__(self, other: Any) -> Span | _Unknown:
        if not isinstance(other, Span):
            return UNKNOWN
        if self.left >= other.left and self.right >= other.right:
            return self
        if self.left <= other.left and self.right <= other.right:
            return other
        return UNKNOWN  # what lies between the two spans is a hole


_FULL = Span(UNBOUNDED, UNBOUNDED)
_EMPTY = Span(-UNBOUNDED, -UNBOUNDED)


class _Unknown:
    """What a symbol becomes when more is done to it than a band needs; it stays that."""

    device = None

    def _unknown(self, *_: Any) -> _Unknown:
        return UNKNOWN

    to = __and__ = __or__ = __add__ = __sub__ = __mul__ = __floordiv__ = __mod__ = _unknown
    __abs__ = __lt__ = __le__ = __gt__ = __ge__ = _unknown
    __eq__ = __ne__ = _unknown  # type: ignore[assignment]


UNKNOWN = _Unknown()


@dataclass(frozen=True, eq=False)
class _Linear:
    """query * (position of the query) + key * (position of the key) + constant."""

    query: int
    key: int
    constant: int

    device = None

    def new_ones(self, *_: Any, **__: Any) -> Span:
        return _FULL

    def new_zeros(self, *_: Any, **__: Any) -> Span:
        return _EMPTY

    def __add__(self, other: Any) -> _Linear | _Unknown:
        return self._plus(other, 1)

    def __sub__(self, other: Any) -> _Linear | _Unknown:
        return self._plus(other, -1)

    def __abs__(self) -> _Absolute:
        return _Absolute(self)

    def __le__(self, other: Any) -> Span | _Unknown:
        return _at_most_zero(self - other)

    def __lt__(self, other: Any) -> Span | _Unknown:
        return _at_most_zero(self - other + 1)

    def __ge__(self, other: Any) -> Span | _Unknown:
        return _at_most_zero(_negated(self - other))

    def __gt__(self, other: Any) -> Span | _Unknown:
        return _at_most_zero(_negated(self - other) + 1)

    def __eq__(self, other: object) -> _Unknown:  # type: ignore[override]
        return UNKNOWN

    __ne__ = __mul__ = __floordiv__ = __mod__ = __eq__  # type: ignore[assignment]

    def _plus(self, other: Any, sign: int) -> _Linear | _Unknown:
        if isinstance(other, int):
            return _Linear(self.query, self.key, self.constant + sign * other)
        if isinstance(other, _Linear):
            return _Linear(
                self.query + sign * other.query,
                self.key + sign * other.key,
                self.constant + sign * other.constant,
            )
        return UNKNOWN


@dataclass(frozen=True)
class _Absolute:
    """The absolute value of a linear expression."""

    inner: _Linear

    def __le__(self, other: Any) -> Span | _Unknown:
        return _at_most_zero(self.inner - other) & _at_most_zero(_negated(self.inner) - other)

    def __lt__(self, other: Any) -> Span | _Unknown:
        if not isinstance(other, int):
            return UNKNOWN
        return self <= other - 1


def _negated(expression: Any) -> Any:
    if not isinstance(expression, _Linear):
        return UNKNOWN
    return _Linear(-expression.query, -expression.key, -expression.constant)


def _at_most_zero(expression: Any) -> Span | _Unknown:
    """The span of `expression` <= 0."""
    if not isinstance(expression, _Linear):
        return UNKNOWN
    coefficients, constant = (expression.query, expression.key), expression.constant
    if coefficients == (-1, 1):  # key - query + constant <= 0
        return Span(UNBOUNDED, -constant)
    if coefficients == (1, -1):
        return Span(-constant, UNBOUNDED)
    if max(coefficients) <= 0 and constant <= 0:  # such as query >= 0: no position is negative
        return _FULL
    return UNKNOWN


def band_of(mask_function: MaskFunction, index: Any = UNKNOWN) -> Band | None:
    """The band that `mask_function` is, for query and key positions that begin at 0, or None.

    Args:
        index: passed as the batch and the head index.
    """
    try:
        found = mask_function(index, index, _Linear(1, 0, 0), _Linear(0, 1, 0))
    except Exception:  # the function is not ours, and what it does to a symbol may fail anyhow
        return None
    if not isinstance(found, Span) or found.left < 0 or found.right < 0:
        return None
    return Band(found.left, found.right, 0)
