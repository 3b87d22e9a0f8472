"""The reference's gradients: finite differences, the explicit formula, and its own gradient."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from attention_inputs import AttentionInputs
from budget import assert_same
from hypothesis import given, settings
from shapes import CASES, AttentionCase, attention_cases
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fused_attention.masks import Band
from fused_attention.reference import attention_backward_reference, attention_reference

# Small enough for finite differences, and together every term that has a derivative.
SMALL = [
    AttentionCase("plain", batch=2, heads_q=2, len_q=3, len_k=4, head_dim=2, value_dim=3),
    AttentionCase("grouped", batch=1, heads_q=4, heads_kv=2, len_q=2, len_k=3, head_dim=2),
    AttentionCase("dead_rows", batch=1, len_q=5, len_k=3, head_dim=2, band=Band.causal()),
    AttentionCase("dead_rows_sinks", batch=1, len_q=3, head_dim=2, band=Band(1, 0, -1), sinks=True),
    AttentionCase("kv_lengths", heads_q=1, len_q=2, len_k=3, head_dim=2, kv_lengths=(0, 2)),
    AttentionCase("bias", batch=2, len_q=3, len_k=4, head_dim=2, bias="1hqk", bias_hides=0.0),
    AttentionCase("bias_hides", batch=1, len_q=3, len_k=4, head_dim=2, bias="11qk"),
    AttentionCase("softcap", batch=1, len_q=3, head_dim=2, softcap=1.3, magnitude=2.0),
    AttentionCase("dropout", batch=2, len_q=3, head_dim=2, dropout_p=0.4),
    AttentionCase(
        "everything",
        batch=2,
        heads_q=2,
        heads_kv=1,
        len_q=3,
        len_k=4,
        head_dim=2,
        value_dim=1,
        band=Band.window(2, 1),
        scale=-0.8,
        softcap=1.3,
        bias="bh1k",
        alibi="bh",
        sinks=True,
        dropout_p=0.3,
        kv_lengths=(4, 3),
        band_offsets=(1, -1),
    ),
    AttentionCase(
        "packed_everything",
        heads_q=2,
        heads_kv=1,
        head_dim=2,
        value_dim=1,
        seq_lens_q=(1, 0, 2),
        seq_lens_k=(2, 1, 1),
        trailing=1,
        band=Band.causal(),
        softcap=1.3,
        alibi="h",
        sinks=True,
        dropout_p=0.3,
    ),
]


def differentiable(case: AttentionCase) -> tuple[AttentionInputs, dict[str, Tensor]]:
    """fp64 inputs, and by name those that have a gradient; no NaN, which has no difference."""
    inputs = case.with_dtype(torch.float64).make()
    numbers = {name: getattr(inputs, name).nan_to_num(1.0) for name in ("query", "key", "value")}
    inputs = replace(inputs, **numbers)
    return inputs, inputs.require_gradients()


def forward(inputs: AttentionInputs, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return attention_reference(**inputs.reference_options | tensors)


def backward(
    inputs: AttentionInputs,
    tensors: dict[str, Tensor],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, ...]:
    """The explicit formula's gradients of `tensors`."""
    options = inputs.reference_options | tensors
    gradients = attention_backward_reference(grad_out, grad_lse, out=out, lse=lse, **options)
    return tuple(gradient for gradient in gradients if gradient is not None)


class ExplicitAttention(torch.autograd.Function):
    """The forward reference, with the explicit formula for its backward, as the operator has it."""

    @staticmethod
    def forward(
        ctx: Any, inputs: AttentionInputs, names: tuple[str, ...], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        out, lse = forward(inputs, dict(zip(names, tensors, strict=True)))
        ctx.inputs, ctx.names = inputs, names
        ctx.save_for_backward(*tensors, out, lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out, lse = ctx.saved_tensors
        named = dict(zip(ctx.names, tensors, strict=True))
        return None, None, *backward(ctx.inputs, named, grad_out, grad_lse, out, lse)


@pytest.mark.parametrize("case", SMALL, ids=str)
class TestFiniteDifferences:
    def test_forward(self, case: AttentionCase) -> None:
        inputs, tensors = differentiable(case)

        def function(*values: Tensor) -> tuple[Tensor, Tensor]:
            out, lse = forward(inputs, dict(zip(tensors, values, strict=True)))
            return out, lse.nan_to_num(neginf=0.0)

        assert gradcheck(function, tuple(tensors.values()))

    def test_backward_formula(self, case: AttentionCase) -> None:
        """With out and lse as variables of their own."""
        inputs, tensors = differentiable(case)
        results = (*inputs.random_output_gradients(), *forward(inputs, tensors))
        variables = [result.detach().requires_grad_() for result in results]

        def function(*values: Tensor) -> tuple[Tensor, ...]:
            named = dict(zip(tensors, values[4:], strict=True))
            return backward(inputs, named, *values[:4])

        assert gradcheck(function, (*variables, *tensors.values()))

    def test_double_backward_through_both(self, case: AttentionCase) -> None:
        inputs, tensors = differentiable(case)

        def function(*values: Tensor) -> tuple[Tensor, Tensor]:
            apply: Any = ExplicitAttention.apply
            out, lse = apply(inputs, tuple(tensors), *values)
            return out, lse.nan_to_num(neginf=0.0)

        assert gradgradcheck(function, tuple(tensors.values()), fast_mode=True)


def assert_formula_is_autograd(inputs: AttentionInputs, tensors: dict[str, Tensor]) -> None:
    """Without and with a gradient of lse."""
    results = forward(inputs, tensors)
    detached = [result.detach() for result in results]
    grads = inputs.random_output_gradients()
    for count in (1, 2):
        leaves = list(tensors.values())
        expected = torch.autograd.grad(
            results[:count], leaves, grads[:count], retain_graph=True, materialize_grads=True
        )
        grad_lse = grads[1] if count == 2 else None
        actual = backward(inputs, tensors, grads[0], grad_lse, *detached)
        for name, ours, theirs in zip(tensors, actual, expected, strict=True):
            assert_same(ours, theirs, f"gradient of {name}, {count} results")


class TestFormulaAgainstAutograd:
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_curated(self, case: AttentionCase) -> None:
        assert_formula_is_autograd(*differentiable(case))

    @pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
    def test_all_combinations_of_terms(self, packed: bool) -> None:
        terms: dict[str, tuple[Any, ...]] = {
            "softcap": (0.0, 1.5),
            "alibi": (None, "bh"),
            "sinks": (False, True),
            "dropout_p": (0.0, 0.3),
            "band": (Band(), Band.window(3, 1)),
        }
        if packed:
            terms |= {"seq_lens_q": ((3, 0, 5),), "seq_lens_k": ((4, 2, 3),), "trailing": (1,)}
        else:
            terms |= {"bias": (None, "1hq1", "b11k"), "kv_lengths": (None, (7, 0))}
        for values in product(*terms.values()):
            named = dict(zip(terms, values, strict=True))
            shape = {"heads_q": 2, "heads_kv": 1, "len_q": 5, "len_k": 7, "head_dim": 3}
            case = AttentionCase(str(named), **shape | named)
            assert_formula_is_autograd(*differentiable(case))

    @settings(max_examples=30, deadline=None)
    @given(case=attention_cases(dtypes=(torch.float64,)))
    def test_random(self, case: AttentionCase) -> None:
        assert_formula_is_autograd(*differentiable(case))


class TestDeadRows:
    @pytest.mark.parametrize("case", [SMALL[2], SMALL[4], SMALL[6], SMALL[-1]], ids=str)
    @pytest.mark.parametrize("explicit", [False, True])
    def test_gradients_are_zero_whatever_comes_in(
        self, case: AttentionCase, explicit: bool
    ) -> None:
        """A dead row's grad_out and grad_lse may be NaN, as logaddexp(-inf, -inf) makes them."""
        inputs, tensors = differentiable(replace(case, sinks=False))
        out, lse = forward(inputs, tensors)
        dead = lse == -torch.inf
        assert dead.any() and not dead.all()
        dead_rows = (dead.mT if case.packed else dead).unsqueeze(-1)
        grad_out, grad_lse = inputs.random_output_gradients()
        expected = torch.autograd.grad(
            (out, lse),
            list(tensors.values()),
            (grad_out.masked_fill(dead_rows, 0.0), grad_lse.masked_fill(dead, 0.0)),
            retain_graph=True,
        )
        grads = grad_out.masked_fill(dead_rows, torch.nan), grad_lse.masked_fill(dead, torch.nan)
        if explicit:
            actual = backward(inputs, tensors, *grads, out.detach(), lse.detach())
        else:
            actual = torch.autograd.grad((out, lse), list(tensors.values()), grads)
        assert_same(actual, expected)

    @pytest.mark.parametrize("case", [SMALL[2], SMALL[4], SMALL[6], SMALL[-1]], ids=str)
    def test_second_derivatives_are_finite(self, case: AttentionCase) -> None:
        inputs, tensors = differentiable(case)
        results = (*inputs.random_output_gradients(), *forward(inputs, tensors))
        variables = [result.detach().requires_grad_() for result in results]
        gradients = backward(inputs, tensors, *variables)
        total = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        for second in torch.autograd.grad(total, [*variables, *tensors.values()]):
            assert second.isfinite().all()


def test_gradients_from_merged_results_add_up() -> None:
    """Split, ring and cascade attention: each part's keys, with the out and lse of the whole."""
    inputs, tensors = differentiable(AttentionCase("whole", len_k=50, softcap=2.0))
    out, lse = (result.detach() for result in forward(inputs, tensors))
    grad_out, grad_lse = inputs.random_output_gradients()
    whole = backward(inputs, tensors, grad_out, grad_lse, out, lse)
    parts = [
        attention_backward_reference(
            grad_out,
            grad_lse,
            inputs.query,
            inputs.key[:, :, keys],
            inputs.value[:, :, keys],
            out,
            lse,
            softcap=2.0,
        )
        for keys in (slice(0, 13), slice(13, 50))
    ]
    assert_same(parts[0].query + parts[1].query, whole[0])
    assert_same(torch.cat([part.key for part in parts], 2), whole[1])
    assert_same(torch.cat([part.value for part in parts], 2), whole[2])
