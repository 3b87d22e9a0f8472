"""The reference's outputs: against torch's own attention, a row-by-row oracle, and invariances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_inputs import AttentionInputs
from budget import assert_same
from hypothesis import given, settings
from row_by_row import attention_row_by_row
from shapes import CASES, AttentionCase, attention_cases
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fused_attention.masks import Band
from fused_attention.reference import attention_backward_reference, attention_reference

BY_NAME = {case.name: case for case in CASES}


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def exact_inputs(name: str) -> AttentionInputs:
    return BY_NAME[name].with_dtype(torch.float64).make()


class TestAgainstTorch:
    """scaled_dot_product_attention in fp64, outputs and gradients."""

    @pytest.mark.parametrize("len_k", [9, 6, 4])
    @pytest.mark.parametrize("heads_kv", [4, 2, 1])
    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            ({}, {}),
            ({"scale": -0.7}, {"scale": -0.7}),
            ({"band": Band.causal(offset=0)}, {"is_causal": True}),
            ({"bias": "bias"}, {"attn_mask": "bias"}),
            ({"bias": "row"}, {"attn_mask": "row"}),
            ({"bias": "hidden"}, {"attn_mask": "mask"}),
        ],
    )
    def test_equals_sdpa(
        self, ours: dict[str, Any], theirs: dict[str, Any], heads_kv: int, len_k: int
    ) -> None:
        query = randn(2, 4, 6, 5, seed=1).requires_grad_()
        key = randn(2, heads_kv, len_k, 5, seed=2).requires_grad_()
        value = randn(2, heads_kv, len_k, 7, seed=3).requires_grad_()
        mask = randn(2, 1, 6, len_k, seed=4) > -0.5
        mask[..., 0] = True  # every row sees a key
        tensors = {
            "bias": randn(1, 4, 6, len_k, seed=5),
            "row": randn(2, 1, 1, len_k, seed=6),
            "mask": mask,
            "hidden": torch.zeros_like(mask, dtype=torch.float64).masked_fill(~mask, -torch.inf),
        }
        ours = {name: tensors.get(str(value), value) for name, value in ours.items()}
        theirs = {name: tensors.get(str(value), value) for name, value in theirs.items()}
        out, _ = attention_reference(query, key, value, **ours)
        expected = scaled_dot_product_attention(query, key, value, enable_gqa=True, **theirs)
        assert_same(out, expected)
        grad_out = randn(*out.shape, seed=7)
        gradients = torch.autograd.grad(out, (query, key, value), grad_out)
        expected_gradients = torch.autograd.grad(expected, (query, key, value), grad_out)
        assert_same(gradients, expected_gradients)


class TestAgainstRows:
    """Every feature, against a second implementation that shares no code but Philox."""

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_curated(self, case: AttentionCase) -> None:
        inputs = case.with_dtype(torch.float64).make()
        assert_same(inputs.reference(), attention_row_by_row(inputs))

    @settings(max_examples=30, deadline=None)
    @given(case=attention_cases(dtypes=(torch.float64,)))
    def test_random(self, case: AttentionCase) -> None:
        inputs = case.make()
        assert_same(inputs.reference(), attention_row_by_row(inputs))


class TestDtypes:
    @pytest.mark.parametrize("name", ["everything", "packed_everything"])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_results_have_the_dtypes_of_their_inputs(self, name: str, dtype: torch.dtype) -> None:
        inputs = BY_NAME[name].with_dtype(dtype).make()
        statistics = torch.float64 if dtype == torch.float64 else torch.float32
        out, lse = inputs.reference()
        assert (out.dtype, lse.dtype) == (dtype, statistics)
        assert out.is_contiguous() and lse.is_contiguous()
        options = inputs.reference_options
        if inputs.bias is not None:
            options["bias"] = inputs.bias.double()
        operands = (inputs.query, inputs.key, inputs.value, out, lse)
        gradients = attention_backward_reference(out, lse, *operands, **options)
        for gradient, tensor in zip(gradients[:3], operands, strict=False):
            assert gradient is not None and gradient.dtype == dtype
            assert gradient.shape == tensor.shape
        assert gradients.sinks is not None and gradients.sinks.dtype == statistics
        assert (gradients.bias is None) == (inputs.bias is None)
        assert gradients.bias is None or gradients.bias.dtype == torch.float64

    @pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32, torch.float64])
    def test_compute_dtype_is_that_of_the_results(self, compute: torch.dtype) -> None:
        inputs = BY_NAME["everything"].with_dtype(torch.float16).make()
        out, lse = inputs.reference(compute_dtype=compute)
        assert out.dtype == compute
        assert lse.dtype == (torch.float64 if compute == torch.float64 else torch.float32)
        gradients = attention_backward_reference(
            out, None, inputs.query, inputs.key, inputs.value, out, lse,
            compute_dtype=compute, **inputs.reference_options,
        )  # fmt: skip
        assert {gradient.dtype for gradient in gradients if gradient is not None} == {compute}

    def test_low_precision_is_computed_in_fp32(self) -> None:
        inputs = BY_NAME["peaked"].with_dtype(torch.bfloat16).make()
        out, lse = inputs.reference()
        wide, wide_lse = inputs.reference(compute_dtype=torch.float32)
        assert torch.equal(out, wide.bfloat16()) and torch.equal(lse, wide_lse)
        assert not torch.equal(out, inputs.reference(compute_dtype=torch.bfloat16)[0])


class TestInvariances:
    def test_order_of_the_keys_does_not_matter(self) -> None:
        inputs = exact_inputs("bias_bhqk")
        order = torch.randperm(41, generator=torch.Generator().manual_seed(0))
        assert inputs.bias is not None
        shuffled = replace(
            inputs,
            key=inputs.key[:, :, order],
            value=inputs.value[:, :, order],
            bias=inputs.bias[..., order],
        )
        assert_same(shuffled.reference(), inputs.reference())

    def test_queries_heads_and_batch_rows_are_independent(self) -> None:
        inputs = exact_inputs("many_heads")
        out, lse = inputs.reference()
        assert_same(replace(inputs, query=inputs.query.flip(2)).reference()[0], out.flip(2))
        reversed_batch = [x.flip(0) for x in (inputs.query, inputs.key, inputs.value)]
        assert_same(attention_reference(*reversed_batch)[1], lse.flip(0))
        group = slice(2, 4)  # of the query heads, reads kv head 1
        own = attention_reference(inputs.query[:, group], inputs.key[:, 1:2], inputs.value[:, 1:2])
        assert_same(own, (out[:, group], lse[:, group]))

    def test_a_constant_on_the_scores_shifts_lse_alone(self) -> None:
        inputs = exact_inputs("bias_11qk")
        assert inputs.bias is not None
        out, lse = inputs.reference()
        assert_same(inputs.reference(bias=inputs.bias + 30.0), (out, lse + 30.0))

    def test_a_sink_is_a_key_without_value(self) -> None:
        query, key, value = randn(2, 3, 5, 4), randn(2, 3, 6, 4, seed=1), randn(2, 3, 6, 4, seed=2)
        sinks = randn(3, seed=3)
        blank = torch.zeros(2, 3, 1, 4, dtype=torch.float64)
        bias = torch.cat([torch.zeros(1, 3, 1, 6), sinks.reshape(1, 3, 1, 1)], dim=-1)
        expected = attention_reference(
            query, torch.cat([key, blank], 2), torch.cat([value, blank], 2), bias=bias
        )
        torch.testing.assert_close(attention_reference(query, key, value, sinks=sinks), expected)

    def test_values_are_averaged(self) -> None:
        inputs = exact_inputs("causal")
        out, _ = replace(inputs, value=torch.ones_like(inputs.value)).reference()
        assert_same(out, torch.ones_like(out))

    def test_huge_scores_do_not_overflow(self) -> None:
        inputs = exact_inputs("plain")
        out, lse = inputs.reference(scale=1e5)
        assert out.isfinite().all() and lse.isfinite().all() and lse.abs().max() > 1e5


class TestDropout:
    def test_kept_probabilities_are_rescaled_by_the_exact_rate(self) -> None:
        """Values that are unit vectors make the output the probabilities themselves."""
        query, key = randn(2, 3, 9, 4), randn(2, 3, 40, 4, seed=1)
        value = torch.eye(40, dtype=torch.float64).expand(2, 3, 40, 40)
        P, lse = attention_reference(query, key, value)
        dropped, dropped_lse = attention_reference(
            query, key, value, dropout_p=0.99, rng_state=torch.tensor([5, 6])
        )
        assert torch.equal(lse, dropped_lse)
        kept = dropped != 0
        threshold = 64881  # round(0.99 * 65536)
        assert 0 < kept.sum() < 0.03 * kept.numel()
        assert_same(dropped[kept], P[kept] * 65536 / (65536 - threshold))

    @pytest.mark.parametrize("dropout_p", [0.1, 0.6])
    def test_is_unbiased(self, dropout_p: float) -> None:
        draws = 600
        query, key, value = (
            randn(1, 2, length, 4, seed=length).expand(draws, -1, -1, -1) for length in (6, 20, 20)
        )
        expected, _ = attention_reference(query[:1], key[:1], value[:1])
        outs, _ = attention_reference(
            query, key, value, dropout_p=dropout_p, rng_state=torch.tensor([17, 0])
        )
        error = (outs.mean(dim=0) - expected[0]).abs()
        assert (error < 5 * outs.std(dim=0) / draws**0.5).all()

    def test_negligible_dropout_is_none(self) -> None:
        inputs = exact_inputs("plain")
        assert torch.equal(inputs.reference(dropout_p=1e-6)[0], inputs.reference()[0])


class TestRefusals:
    @pytest.mark.parametrize("name", ["bias", "kv_lengths"])
    def test_dense_terms_with_a_packed_batch(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"^{name}: must be None with a packed batch"):
            exact_inputs("packed").reference(**{name: torch.zeros(1)})

    def test_dropout_without_a_state(self) -> None:
        with pytest.raises(ValueError, match="^rng_state: must be given with dropout_p 0.5"):
            exact_inputs("plain").reference(dropout_p=0.5)

    def test_unknown_keywords(self) -> None:
        with pytest.raises(TypeError, match="dropout"):
            exact_inputs("plain").reference(dropout=0.5)
