"""The operators under autograd: right gradients of every order, nothing done in vain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_case import AttentionCase
from attention_inputs import AttentionInputs
from places import CPU_BACKENDS
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fused_attention import Band, attention, attention_varlen, autograd
from fused_attention.backends import reference
from fused_attention.backends.call import Call, Gradients
from fused_attention.prepare import prepare

TINY = {"batch": 2, "heads_q": 2, "len_q": 3, "len_k": 4, "head_dim": 3, "dtype": torch.float64}
LENS = {"seq_lens_q": (2, 3, 1), "seq_lens_k": (3, 1, 2)}

# Every feature; some queries see no key.
CASES = (
    AttentionCase("plain", **TINY),
    AttentionCase(
        "grouped_window", **{**TINY, "heads_q": 4}, heads_kv=2, value_dim=2, band=Band.window(2, 1)
    ),
    AttentionCase("bias_softcap", **TINY, bias="1hqk", bias_hides=0.0, softcap=2.0, scale=0.7),
    AttentionCase("bias_broadcast", **TINY, bias="b11k", bias_hides=0.0),
    AttentionCase("sinks_lengths", **TINY, sinks=True, kv_lengths=(4, 2), layout="swapped"),
    AttentionCase("slopes_dropout", **TINY, alibi="bh", dropout_p=0.4, band=Band.causal()),
    AttentionCase("offsets", **TINY, band_offsets=(1, 3), band=Band.window(3, 1)),
    AttentionCase("packed", **TINY, **LENS, trailing=2, alibi="h", sinks=True, dropout_p=0.3),
    AttentionCase("packed_window", **TINY, **LENS, band=Band.window(2, 0)),
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def function_of(inputs: AttentionInputs, backend: str) -> tuple[Callable[..., Any], list[Tensor]]:
    """(out, lse) as a function of the differentiable tensors, and those tensors."""
    variables = inputs.require_gradients()
    options = {name: option for name, option in inputs.options.items() if name not in variables}
    attend = attention_varlen if inputs.case.packed else attention

    def function(*tensors: Tensor) -> Any:
        named = dict(zip(variables, tensors, strict=True))
        return attend(**named, **options, backend=backend, return_lse=True)  # type: ignore

    return function, list(variables.values())


def forward_arguments(inputs: AttentionInputs, backend: str) -> tuple[Any, ...]:
    """What the forward operator is called with."""
    options = dict(inputs.options)
    state = [options.pop(name, 0) for name in ("dropout_seed", "dropout_offset")]
    problem, call = prepare(inputs.query, inputs.key, inputs.value, **options)
    if problem.dropout_p:
        call = call._replace(rng_state=torch.tensor(state))
    return (*call, backend)


def backward_arguments(inputs: AttentionInputs, backend: str) -> tuple[Any, ...]:
    *call, name = forward_arguments(inputs, backend)
    with torch.no_grad():
        out, lse = autograd.forward_op(*call, name)
    # As autograd does, with a gradient of another layout than its tensor.
    grad_out = torch.randn_like(out).mT.contiguous().mT
    grad_lse = torch.randn_like(lse)
    tensors, scalars = call[: autograd.FORWARD_TENSORS], call[autograd.FORWARD_TENSORS :]
    has_bias = inputs.bias is not None
    return (grad_out, grad_lse, *tensors, out, lse, *scalars, name, has_bias)


def finite(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with 0 for an lse of -inf, which has no numerical derivative."""

    def wrapped(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = function(*tensors)
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    return wrapped


@every_backend
@every_case
def test_gradients_are_numerical_derivatives(case: AttentionCase, backend: str) -> None:
    function, tensors = function_of(case.make(), backend)
    assert torch.autograd.gradcheck(finite(function), tensors, fast_mode=True)


@every_backend
@every_case
def test_double_backward_is_a_numerical_derivative(case: AttentionCase, backend: str) -> None:
    function, tensors = function_of(case.make(), backend)
    assert torch.autograd.gradgradcheck(finite(function), tensors, fast_mode=True)


@every_backend
@every_case
def test_forward_operator_is_well_behaved(case: AttentionCase, backend: str) -> None:
    inputs = case.make()
    inputs.require_gradients()
    torch.library.opcheck(autograd.forward_op, forward_arguments(inputs, backend))


@every_backend
@every_case
def test_backward_operator_is_well_behaved(case: AttentionCase, backend: str) -> None:
    """Without gradients of its own: torch.compile has no double backward."""
    torch.library.opcheck(autograd.backward_op, backward_arguments(case.make(), backend))


def test_backward_operator_has_a_derivative() -> None:
    inputs = CASES[0].make()
    inputs.require_gradients()
    arguments = backward_arguments(inputs, "reference")
    torch.library.opcheck(
        autograd.backward_op, arguments, test_utils=["test_schema", "test_autograd_registration"]
    )


@every_backend
def test_third_derivative(backend: str) -> None:
    """Through the double backward itself, against autograd through the forward's formula."""

    def third(function: Callable[[Tensor], Tensor]) -> Tensor:
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, 1, 4, 3).requires_grad_()
        y = function(x)
        for _ in range(3):
            (x_grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            y = x_grad
        return y.detach()

    exact = third(lambda x: reference.attention_reference(x, x, x)[0])
    ours = third(lambda x: attention(x, x, x, backend=backend))
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


@every_backend
def test_rows_without_keys_have_zero_gradients_of_every_order(backend: str) -> None:
    inputs = AttentionCase("dead", **TINY, kv_lengths=(0, 3), band=Band.causal(0)).make()
    function, tensors = function_of(inputs, backend)
    out, lse = function(*tensors)
    assert (lse[0] == -math.inf).all() and (out[0] == 0).all()
    finite_lse = lse.masked_fill(lse.isinf(), 0.0)
    first = torch.autograd.grad(out.sum() + finite_lse.sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
    for grad in (*first, *second):
        assert grad.isfinite().all()
        assert (grad[0] == 0).all() and (grad[1] != 0).any()


@every_backend
@pytest.mark.parametrize("used", ["out", "lse", "both"])
def test_each_output_has_its_gradient(used: str, backend: str) -> None:
    inputs = AttentionCase("", dtype=torch.float64, band=Band.causal()).make()
    function, tensors = function_of(inputs, backend)
    out, lse = function(*tensors)
    grad_out, grad_lse = inputs.random_output_gradients()
    loss = 0.0 if used == "lse" else (out * grad_out).sum()
    loss = loss if used == "out" else loss + (lse * grad_lse).sum()
    found = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    exact = inputs.exact_gradients(
        torch.zeros_like(grad_out) if used == "lse" else grad_out,
        None if used == "out" else grad_lse,
    )
    torch.testing.assert_close(found, tuple(exact[:3]))


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradient_of_a_sum_is_no_special_case(dtype: torch.dtype, backend: str) -> None:
    """out.sum() hands on one number, expanded: every stride is 0."""
    inputs = AttentionCase("", dtype=dtype, layout="swapped").make()
    function, tensors = function_of(inputs, backend)
    out, _ = function(*tensors)
    expanded = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    written_out = torch.autograd.grad(out, tensors, torch.ones_like(out))
    assert all(map(torch.equal, expanded, written_out))


@every_backend
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"len_q": 0}, {"batch": 0, "len_q": 0}], ids=str)
def test_gradient_of_an_empty_sum(sizes: dict[str, int], backend: str) -> None:
    """Its strides are 0 as well, and torch calls what is empty contiguous."""
    function, tensors = function_of(AttentionCase("", **sizes).make(), backend)
    for grad in torch.autograd.grad(function(*tensors)[0].sum(), tensors):
        assert (grad == 0).all()


def saved_tensors(function: Callable[[], Any]) -> int:
    """How many tensors autograd keeps for `function`."""
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return count


def test_nothing_is_saved_without_need() -> None:
    query = torch.randn(1, 2, 4, 8)
    variable = query.clone().requires_grad_()
    assert attention(query, query, query).grad_fn is None
    assert saved_tensors(lambda: attention(query, query, query)) == 0
    with torch.no_grad():
        assert attention(variable, query, query).grad_fn is None
        assert saved_tensors(lambda: attention(variable, query, query)) == 0
    assert saved_tensors(lambda: attention(variable, query, query)) == 5  # q, k, v, out, lse


@pytest.mark.parametrize("wanted", ["query", "key", "value", "bias", "sinks"])
def test_only_needed_gradients_are_computed(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Tensor | None, bool]] = []

    class Watching:
        forward = staticmethod(reference.forward)

        def backward(
            self, call: Call, grad_out: Tensor, grad_lse: Tensor | None, *rest: Any
        ) -> Gradients:
            asked.append((grad_lse, rest[-1]))
            return reference.backward(call, grad_out, grad_lse, *rest)

    monkeypatch.setattr(autograd, "get", lambda name: Watching())
    inputs = AttentionCase("", bias="1hqk", sinks=True).make()
    variable = getattr(inputs, wanted).requires_grad_()
    out = attention(inputs.query, inputs.key, inputs.value, **inputs.options)
    (found,) = torch.autograd.grad(out.square().sum(), variable)
    assert found.shape == variable.shape and (found != 0).any()
    assert asked == [(None, wanted == "bias")]  # lse was not used


@every_backend
def test_gradients_keep_dtype_and_dimension_order(backend: str) -> None:
    inputs = AttentionCase("", dtype=torch.bfloat16, layout="swapped", bias="1hqk").make()
    function, tensors = function_of(inputs, backend)
    out, lse = function(*tensors)
    assert out.transpose(1, 2).is_contiguous() and lse.dtype == torch.float32
    found = torch.autograd.grad(out.float().square().sum(), tensors)
    for grad, tensor in zip(found, tensors, strict=True):
        assert grad.dtype == tensor.dtype and grad.shape == tensor.shape
    assert all(grad.transpose(1, 2).is_contiguous() for grad in found[:3])


def test_changing_an_input_before_backward_is_noticed() -> None:
    query = torch.randn(2, 1, 4, 8, requires_grad=True)
    kv_lengths = torch.tensor([2, 4], dtype=torch.int32)
    out = attention(query, query, query, kv_lengths=kv_lengths)
    kv_lengths += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@every_backend
def test_checkpoint_draws_the_same_dropout(backend: str) -> None:
    query = torch.randn(1, 2, 16, 8, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        return attention(x, x, x, dropout_p=0.5, backend=backend)

    torch.manual_seed(0)
    (plain,) = torch.autograd.grad(block(query).square().sum(), query)
    torch.manual_seed(0)
    recomputed = checkpoint(block, query, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(recomputed.square().sum(), query)[0], plain)


@every_backend
def test_gradient_of_a_global_merge(backend: str) -> None:
    """backward takes an out and lse that cover more keys: its key gradients are the full ones."""
    inputs = AttentionCase("", dtype=torch.float64, len_k=20).make()
    grad_out, grad_lse = inputs.random_output_gradients()
    exact = inputs.exact_gradients(grad_out, grad_lse)
    half = replace(inputs, key=inputs.key[:, :, :11], value=inputs.value[:, :, :11])
    call = Call(*forward_arguments(half, backend)[:-1])
    operands = (inputs.query, inputs.key, inputs.value)
    out, lse = reference.attention_reference(*operands)
    args = autograd.join_backward((grad_out, grad_lse), call, (out, lse), (backend, False))
    _, grad_key, grad_value, _, _ = autograd.backward_op(*args)
    torch.testing.assert_close(grad_key, exact.key[:, :, :11])
    torch.testing.assert_close(grad_value, exact.value[:, :, :11])
