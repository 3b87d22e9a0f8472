"""The curated problems and the random ones: valid, reproducible, and judged as they should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from shapes import CASES, DTYPES, AttentionCase, attention_cases

from fused_attention.masks import Band
from fused_attention.reference import attention_backward_reference

BY_NAME = {case.name: case for case in CASES}


def reference_passes(case: AttentionCase, **changed: Any) -> None:
    """The reference, by default in fp32 or more, stands in for a kernel.

    `changed` are options that this kernel gets wrong.
    """
    inputs = case.make(seed=0)
    operands = (inputs.query, inputs.key, inputs.value)
    options = inputs.reference_options | changed
    out, lse = inputs.reference(**changed)
    inputs.assert_forward(out, lse)
    grad_out, grad_lse = inputs.random_output_gradients()
    gradients = attention_backward_reference(grad_out, grad_lse, *operands, out, lse, **options)
    inputs.assert_gradients(gradients, grad_out, grad_lse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_right_kernel_is_within_budget(case: AttentionCase, dtype: torch.dtype) -> None:
    reference_passes(case.with_dtype(dtype))


@settings(max_examples=40, deadline=None)
@given(case=attention_cases())
def test_a_right_kernel_is_within_budget_on_random_problems(case: AttentionCase) -> None:
    reference_passes(case)


WRONG_OPTIONS = [
    ("causal", {"band": Band.causal(offset=1)}),
    ("causal", {"band": Band.causal(offset=-1)}),
    ("causal_more_keys", {"band": Band.causal(offset=0)}),
    ("sliding", {"band": Band.sliding(18)}),
    ("sliding", {"band": Band.sliding(16)}),
    ("window", {"band": Band.window(9, 5)}),
    ("plain", {"scale": 0.26}),
    ("kv_lengths", {"kv_lengths": torch.tensor([0, 1, 69, 33])}),
    ("offsets", {"band_offsets": torch.tensor([0, -40, 11, -1])}),
    ("softcap", {"softcap": 0.0}),
    ("softcap", {"softcap": 1.6}),
    ("bias_11qk", {"bias": None}),
    ("alibi", {"alibi_slopes": None}),
    ("sinks", {"sinks": None}),
    ("sinks_dead_rows", {"sinks": None}),
    ("dropout", {"dropout_p": 0.0, "rng_state": None}),
    ("dropout", {"rng_state": torch.tensor([0, 0])}),
    ("dropout", {"dropout_p": 0.2}),
    ("packed_everything", {"softcap": 0.0}),
    ("packed_lengths_differ", {"band": Band.causal(offset=0)}),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "wrong"), WRONG_OPTIONS)
def test_a_wrong_kernel_is_not(name: str, wrong: dict[str, Any], dtype: torch.dtype) -> None:
    with pytest.raises(AssertionError, match=f"^{name}: "):
        reference_passes(BY_NAME[name].with_dtype(dtype), **wrong)


def test_wrong_gradients_are_refused() -> None:
    inputs = BY_NAME["everything"].make(seed=0)
    grad_out, grad_lse = inputs.random_output_gradients()
    exact = inputs.exact_gradients(grad_out, grad_lse)
    right = [None if gradient is None else gradient.float() for gradient in exact]
    inputs.assert_gradients(right, grad_out, grad_lse)
    for n, name in enumerate(exact._fields):
        gradients: list[torch.Tensor | None] = [None] * 5
        wrong = right[n]
        assert wrong is not None
        gradients[n] = wrong * 1.001
        with pytest.raises(AssertionError, match=f"^everything: gradient of {name}: error"):
            inputs.assert_gradients(gradients, grad_out, grad_lse)


def test_wrong_dtypes_are_refused() -> None:
    inputs = BY_NAME["plain"].with_dtype(torch.bfloat16).make()
    out, lse = inputs.exact
    with pytest.raises(AssertionError, match="out: dtype torch.float32"):
        inputs.assert_forward(out.float())
    with pytest.raises(AssertionError, match="lse: dtype torch.bfloat16"):
        inputs.assert_forward(out.bfloat16(), lse.bfloat16())
    grad_out, grad_lse = inputs.random_output_gradients()
    gradients = inputs.exact_gradients(grad_out, grad_lse)
    with pytest.raises(AssertionError, match="gradient of query: dtype torch.float64"):
        inputs.assert_gradients(gradients, grad_out, grad_lse)


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(CASES)


@pytest.mark.parametrize("name", ["everything", "packed_everything"])
def test_numbers_follow_from_the_seed(name: str) -> None:
    one, same, other = (BY_NAME[name].make(seed).__dict__ for seed in (3, 3, 4))
    for field in ("query", "key", "value", "bias", "alibi_slopes", "sinks"):
        if one[field] is not None:
            assert torch.equal(one[field].nan_to_num(9), same[field].nan_to_num(9))
            assert not torch.equal(one[field].nan_to_num(9), other[field].nan_to_num(9))


def test_padding_holds_nan() -> None:
    inputs = BY_NAME["kv_lengths"].make()
    missing = inputs.key[:, 0, :, 0].isnan().sum(dim=-1)
    assert missing.tolist() == [70, 69, 0, 37]
    assert torch.equal(inputs.key.isnan(), inputs.value.isnan())
    inputs = BY_NAME["packed_empty_sequences"].make()
    for tensor in (inputs.query, inputs.key, inputs.value):
        assert tensor.shape[0] == 30
        assert tensor[27:].isnan().all() and tensor[:27].isfinite().all()


def test_layouts() -> None:
    swapped = BY_NAME["layout_swapped"].make().query
    assert swapped.transpose(1, 2).is_contiguous() and not swapped.is_contiguous()
    sliced = BY_NAME["layout_sliced"].make().value
    assert sliced.stride()[2:] == (24, 1) and sliced.storage_offset() == 3
    assert BY_NAME["layout_shared"].make().key.stride(0) == 0
    assert BY_NAME["packed_swapped"].make().key.transpose(0, 1).is_contiguous()


def test_options_name_what_the_case_has() -> None:
    inputs = BY_NAME["plain"].make()
    assert inputs.options == inputs.reference_options == {}
    inputs = BY_NAME["everything"].make(seed=2)
    shared = {"band", "scale", "softcap", "bias", "alibi_slopes", "sinks", "dropout_p"}
    shared |= {"kv_lengths", "band_offsets"}
    assert inputs.options.keys() == shared | {"dropout_seed", "dropout_offset"}
    assert inputs.reference_options.keys() == shared | {"rng_state"}
    state = [inputs.options["dropout_seed"], inputs.options["dropout_offset"]]
    assert inputs.reference_options["rng_state"].tolist() == state
    assert BY_NAME["packed"].make().options.keys() == {"cu_seqlens_q", "cu_seqlens_k"}


def test_bias_hides_keys_and_whole_queries() -> None:
    for name in ("bias_bhqk", "bias_11qk", "bias_11q1"):
        bias = BY_NAME[name].make().bias
        assert bias is not None and bias[:, :, 0].eq(-torch.inf).all()
        assert bias[:, :, 1:].isneginf().any() and bias[:, :, 1:].isfinite().any()


def test_require_gradients() -> None:
    tensors = BY_NAME["everything"].make().require_gradients()
    assert set(tensors) == {"query", "key", "value", "bias", "sinks"}
    assert all(tensor.requires_grad and tensor.is_leaf for tensor in tensors.values())
