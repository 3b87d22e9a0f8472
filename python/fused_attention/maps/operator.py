"""The operator fused_attention::maps, which has no gradient, and the choice of its backend."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from fused_attention.checks import check_values
from fused_attention.maps import cpu, reference, triton
from fused_attention.maps.call import MapsCall, Results
from fused_attention.maps.problem import MapsProblem, check_indices
from fused_attention.selection import named


class Backend(Protocol):
    """What cpu.py, triton.py and reference.py offer."""

    @property
    def NAME(self) -> str: ...  # noqa: N802

    @property
    def DEVICE_TYPES(self) -> tuple[str, ...]: ...  # noqa: N802

    def why_not(self, problem: MapsProblem) -> list[str]:
        """Every reason why this backend cannot run `problem`; empty if it can."""

    def maps(self, call: MapsCall) -> Results:
        """The results, laid out as `call.empty_results()`."""


BACKENDS: tuple[Backend, ...] = (cpu, triton, reference)

_library = torch.library.Library("fused_attention", "FRAGMENT")
_library.define(
    "maps(Tensor query, Tensor key, Tensor lse, Tensor? bias, Tensor? alibi_slopes, "
    "Tensor? kv_lengths, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? band_offsets, "
    "Tensor? heads, Tensor? rows, SymInt max_seqlen_q, SymInt max_seqlen_k, float scale, "
    "float softcap, SymInt left, SymInt right, SymInt offset, bool column_mass, bool entropy, "
    "bool argmax, int top_k, str backend) -> (Tensor weights, Tensor column_mass, "
    "Tensor entropy, Tensor argmax, Tensor top_weights, Tensor top_indices)"
)
maps_op = torch.ops.fused_attention.maps.default


def _maps(*args: Any) -> Results:
    call = MapsCall(*args[:-1])
    check_values(call.attention)
    check_indices("heads", call.heads, call.query.shape[1])
    check_indices("rows", call.rows, call.query.shape[0 if call.packed else 2])
    return named(args[-1], BACKENDS).maps(call)


def _maps_fake(*args: Any) -> Results:
    return MapsCall(*args[:-1]).empty_results()


_library.impl("maps", _maps, "CompositeExplicitAutograd")
torch.library.register_fake("fused_attention::maps", _maps_fake, lib=_library)
