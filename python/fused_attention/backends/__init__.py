"""The backends, best first; each says of a problem why it cannot run it, and runs it if it can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from fused_attention.backends import cpu, cuda_sm80, reference, triton
from fused_attention.backends.call import Call, DecodeCall, Gradients
from fused_attention.selection import named

if TYPE_CHECKING:
    from fused_attention.decode_problem import DecodeProblem
    from fused_attention.problem import Problem


class Backend(Protocol):
    """What a module of this package offers. It obeys: checks and choices were made above it."""

    @property
    def NAME(self) -> str: ...  # noqa: N802

    @property
    def DEVICE_TYPES(self) -> tuple[str, ...]: ...  # noqa: N802  # made for these; empty: for any

    def why_not(self, problem: Problem) -> list[str]:
        """Every reason why this backend cannot run `problem`; empty if it can."""

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        """out and lse, laid out as `call.empty_out()` and `call.empty_lse()`."""

    def backward(
        self,
        call: Call,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        out: Tensor,
        lse: Tensor,
        needs_bias_grad: bool,
    ) -> Gradients:
        """Gradients, query's, key's and value's laid out by `empty_like_layout`."""

    def decode_why_not(self, problem: DecodeProblem) -> list[str]:
        """Every reason why this backend cannot run a step of decoding; empty if it can."""

    def decode(self, call: DecodeCall) -> tuple[Tensor, Tensor]:
        """Store the new keys and values, then attend; out and lse laid out as the call says."""


@runtime_checkable
class ForwardMode(Protocol):
    """What a backend offers in addition if it has a kernel for forward-mode differentiation."""

    def jvp(
        self, call: Call, tangents: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """out, lse and their tangents along those of query, key, value, bias and sinks."""


ORDER: tuple[Backend, ...] = (cuda_sm80, cpu, triton, reference)


def get(name: str) -> Backend:
    """The backend of this name.

    Raises:
        ValueError: there is none.
    """
    return named(name, ORDER)


def forward_mode_of(name: str) -> ForwardMode:
    """The backend of this name if it has forward mode; else the formulas."""
    backend = get(name)
    return backend if isinstance(backend, ForwardMode) else reference
