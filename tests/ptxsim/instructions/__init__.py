"""Instructions by family; importing a family fills the table."""

from __future__ import annotations

from . import (
    arithmetic,
    atomics,
    barriers,
    bits,
    control,
    conversions,
    copies,
    floats,
    loads,
    matrix,
    warp,
    wgmma,
)
from .registry import TABLE

__all__ = [
    "TABLE",
    "arithmetic",
    "atomics",
    "barriers",
    "bits",
    "control",
    "conversions",
    "copies",
    "floats",
    "loads",
    "matrix",
    "warp",
    "wgmma",
]
