"""The C++ kernels of csrc/cpu/maps: every mask and score, every dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fused_attention import _ext
from fused_attention.backends import cpu as attention
from fused_attention.backends.cpu import DEVICE_TYPES, NAME
from fused_attention.maps.call import MapsCall, Results

if TYPE_CHECKING:
    from fused_attention.maps.problem import MapsProblem

__all__ = ["DEVICE_TYPES", "NAME", "maps", "why_not"]


def why_not(problem: MapsProblem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    return attention.why_not(problem.attention)


def maps(call: MapsCall) -> Results:
    """The results of one call."""
    isa = _ext.cpu_isa()  # first of all: this loads the operators
    results = call.empty_results()
    scalars = (call.scale, call.softcap, call.left, call.right, call.offset)
    torch.ops.fused_attention.cpu_maps.default(*call[:11], *scalars, isa, *call.wanted(results))
    return results
