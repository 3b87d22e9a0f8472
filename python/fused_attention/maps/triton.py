"""The Triton kernels of triton_kernels/maps.py: every mask and score on GPUs of NVIDIA and AMD."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fused_attention.backends import triton as attention
from fused_attention.maps.call import MapsCall, Results

if TYPE_CHECKING:
    from fused_attention.maps.problem import MapsProblem

NAME = "triton"
DEVICE_TYPES = ("cuda",)
MOST_TOP_K = 128


def why_not(problem: MapsProblem) -> list[str]:
    """Reasons why these kernels cannot serve `problem`; empty when they can."""
    reasons = attention.decode_why_not(problem.attention)
    if problem.top_k > MOST_TOP_K:
        reasons.append(f"top_k goes up to {MOST_TOP_K}, got {problem.top_k}")
    return reasons


def maps(call: MapsCall) -> Results:
    """The results of one call."""
    from fused_attention.triton_kernels.maps import attention_maps

    results = call.empty_results()
    with attention.on_device_of(call.query):
        attention_maps(call, *call.wanted(results))
    return results
