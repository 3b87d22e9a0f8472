"""The tensors of one attention problem, its exact result, its baseline and its error budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from budget import GRADIENT_FACTOR, assert_within_budget
from torch import Tensor

from fused_attention.masks import Band
from fused_attention.reference import (
    AttentionGradients,
    attention_backward_reference,
    attention_reference,
)

if TYPE_CHECKING:
    from attention_case import AttentionCase

_Judged: TypeAlias = tuple[Sequence[Any], Sequence[Any]]  # exact results, baselines
_OPTIONAL_TENSORS = (
    "bias",
    "alibi_slopes",
    "sinks",
    "kv_lengths",
    "band_offsets",
    "cu_seqlens_q",
    "cu_seqlens_k",
)
_FEW = 64  # a result of fewer elements needs more draws to have an honest baseline


@dataclass(frozen=True)
class AttentionInputs:
    """Tensors of one problem, named and shaped as the arguments of `attention`."""

    case: AttentionCase
    seed: int
    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    kv_lengths: Tensor | None
    band_offsets: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    dropout_seed: int
    dropout_offset: int

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of `attention`; of `attention_varlen` when packed. Defaults are left out."""
        options = self._shared_options()
        if self.case.dropout_p:
            options |= {"dropout_seed": self.dropout_seed, "dropout_offset": self.dropout_offset}
        return options

    @property
    def reference_options(self) -> dict[str, Any]:
        """Keywords of `attention_reference` and `attention_backward_reference`."""
        options = self._shared_options()
        if self.case.dropout_p:
            state = torch.tensor([self.dropout_seed, self.dropout_offset])
            options["rng_state"] = state.to(self.query.device)
        return options

    def _shared_options(self) -> dict[str, Any]:
        case = self.case
        options: dict[str, Any] = {"band": case.band} if case.band != Band() else {}
        options |= {} if case.scale is None else {"scale": case.scale}
        options |= {"softcap": case.softcap} if case.softcap else {}
        options |= {"dropout_p": case.dropout_p} if case.dropout_p else {}
        options |= {name: getattr(self, name) for name in _OPTIONAL_TENSORS}
        return {name: option for name, option in options.items() if option is not None}

    def require_gradients(self) -> dict[str, Tensor]:
        """Make query, key, value and, where there, bias and sinks differentiable; returns them."""
        names = ("query", "key", "value", "bias", "sinks")
        tensors = {name: getattr(self, name) for name in names}
        return {name: t.requires_grad_() for name, t in tensors.items() if t is not None}

    def random_output_gradients(self, seed: int = 1) -> tuple[Tensor, Tensor]:
        """grad_out and grad_lse in the shapes and dtypes of out and lse."""
        generator = torch.Generator().manual_seed(seed)
        *leading, _ = self.query.shape
        out_shape = (*leading, self.value.shape[-1])
        lse_shape = leading[::-1] if self.case.packed else leading
        grad_out = torch.randn(out_shape, generator=generator, dtype=torch.float64)
        grad_lse = torch.randn(lse_shape, generator=generator, dtype=torch.float64)
        device, dtype = self.query.device, self.case.dtype
        return grad_out.to(device, dtype), grad_lse.to(device, statistics_dtype(dtype))

    def reference(self, **changed: Any) -> tuple[Tensor, Tensor]:
        """out and lse of the reference, differentiable; `changed` replaces options."""
        options = self.reference_options | changed
        return attention_reference(self.query, self.key, self.value, **options)

    @cached_property
    def exact(self) -> tuple[Tensor, Tensor]:
        """out and lse in fp64."""
        return self._reference_in(torch.float64)

    @cached_property
    def baseline(self) -> tuple[Tensor, Tensor]:
        """out as torch computes it in the problem's dtype, lse in fp32 (for fp64 both in fp32)."""
        out, lse = self._reference_in(_baseline_dtype(self.case.dtype))
        if _baseline_dtype(self.case.dtype) != torch.float32:
            _, lse = self._reference_in(torch.float32)
        return out, lse

    def exact_gradients(self, grad_out: Tensor, grad_lse: Tensor | None) -> AttentionGradients:
        return self._reference_gradients(grad_out, grad_lse, *self.exact, torch.float64)

    def baseline_gradients(self, grad_out: Tensor, grad_lse: Tensor | None) -> AttentionGradients:
        """The flash formula by torch in the problem's dtype (for fp64 in fp32).

        Not autograd's: as the kernels do, it takes delta from the rounded out.
        """
        dtype = _baseline_dtype(self.case.dtype)
        return self._reference_gradients(grad_out, grad_lse, *self.baseline, dtype)

    def assert_forward(self, out: Tensor, lse: Tensor | None = None) -> None:
        """out (and lse) have the right dtypes and are within their error budgets."""
        assert out.dtype == self.case.dtype, f"out: dtype {out.dtype}"
        draws = self._draws(lambda inputs: (inputs.exact, inputs.baseline))
        _assert_result(out, 0, draws, f"{self.case}: out")
        if lse is not None:
            assert lse.dtype == statistics_dtype(self.case.dtype), f"lse: dtype {lse.dtype}"
            _assert_result(lse, 1, draws, f"{self.case}: lse")

    def assert_gradients(
        self, gradients: Sequence[Tensor | None], grad_out: Tensor, grad_lse: Tensor | None
    ) -> None:
        """Gradients of query, key, value, bias, sinks are within budget; None is not looked at."""

        def judge(inputs: AttentionInputs) -> tuple[AttentionGradients, AttentionGradients]:
            grads = (grad_out, grad_lse)
            if inputs is not self:
                drawn_out, drawn_lse = inputs.random_output_gradients()
                grads = (drawn_out, None if grad_lse is None else drawn_lse)
            return inputs.exact_gradients(*grads), inputs.baseline_gradients(*grads)

        draws = self._draws(judge)
        for n, name in enumerate(AttentionGradients._fields):
            actual, source = gradients[n], getattr(self, name)
            if actual is not None:
                assert actual.dtype == source.dtype, f"gradient of {name}: dtype {actual.dtype}"
                title = f"{self.case}: gradient of {name}"
                _assert_result(actual, n, draws, title, factor=GRADIENT_FACTOR)

    def _draws(self, judge: Callable[[AttentionInputs], _Judged]) -> list[_Judged]:
        """(exact results, baselines) of this problem, and of more seeds if a result is tiny.

        A handful of numbers can be right by luck, as the sum that a sink's gradient is, and would
        leave no budget.
        """
        own = judge(self)
        if all(x is None or x.numel() >= _FEW for x in own[0]):
            return [own]
        seeds = range(self.seed + 1, self.seed + 5)
        return [own, *(judge(self.case.make(seed, self.query.device)) for seed in seeds)]

    def _reference_in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.reference(compute_dtype=dtype)

    def _reference_gradients(
        self,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        out: Tensor,
        lse: Tensor,
        dtype: torch.dtype,
    ) -> AttentionGradients:
        operands = (grad_out, grad_lse, self.query, self.key, self.value, out, lse)
        with torch.no_grad():
            return attention_backward_reference(
                *operands, compute_dtype=dtype, **self.reference_options
            )


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _baseline_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else dtype


def _assert_result(
    actual: Tensor, n: int, draws: list[_Judged], name: str, factor: float = 2.0
) -> None:
    """The n-th result against the first of the draws, with the luck of all of them."""
    own, *more = [(exact[n], baseline[n]) for exact, baseline in draws]
    assert own[0] is not None, f"{name}: the problem has no such result"
    assert_within_budget(actual, *own, more_draws=more, factor=factor, name=name)
