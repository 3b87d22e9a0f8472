"""The operators of additive attention under autograd, torch.func, torch.compile and autocast."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from additive_case import AdditiveCase, AdditiveInputs
from torch import Tensor

from fused_attention import Band, additive_attention, backends
from fused_attention.additive.operator import ORDER, attend

TINY = {"len_q": 3, "len_k": 4, "dim": 3, "value_dim": 2, "dtype": torch.float64}
CASES = (
    AdditiveCase("plain", **TINY),
    AdditiveCase("three_dimensions", **TINY, heads=0),
    AdditiveCase("window", **TINY, band=Band.window(1, 0), v_heads=True),
    AdditiveCase("lengths", **TINY, key_lengths=(4, 2)),
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
CPU_BACKENDS = [one.NAME for one in ORDER if not one.DEVICE_TYPES or "cpu" in one.DEVICE_TYPES]
every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def function_of(inputs: AdditiveInputs, backend: str) -> tuple[Callable[..., Any], list[Tensor]]:
    """(out, lse) as a function of the differentiable tensors, and those; dead rows' lse is 0."""
    dim = inputs.case.dim
    bias, g = torch.linspace(-1, 1, dim, dtype=torch.float64), torch.tensor(1.3).double()
    leaves = [inputs.query, inputs.key, inputs.value, inputs.v, bias, g]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        *operands, bias, g = (x.nan_to_num() for x in tensors)
        options = {"bias": bias, "g": g, "return_lse": True, "backend": backend}
        out, lse = additive_attention(*operands, **options, **inputs.options)
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    return function, [leaf.detach().nan_to_num().requires_grad_() for leaf in leaves]


@every_backend
@every_case
def test_gradients_are_numerical_derivatives(case: AdditiveCase, backend: str) -> None:
    function, tensors = function_of(case.make(), backend)
    assert torch.autograd.gradcheck(
        function, tensors, fast_mode=True, check_forward_ad=True, check_batched_grad=True
    )


@every_backend
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"len_q": 0}], ids=str)
def test_gradient_of_an_empty_sum(sizes: dict[str, int], backend: str) -> None:
    """It is one expanded number, whose strides mean nothing."""
    function, tensors = function_of(AdditiveCase("", **sizes).make(), backend)
    for grad in torch.autograd.grad(function(*tensors)[0].sum(), tensors, allow_unused=True):
        assert grad is None or (grad == 0).all()


@every_backend
@every_case
def test_double_backward_is_a_numerical_derivative(case: AdditiveCase, backend: str) -> None:
    function, tensors = function_of(case.make(), backend)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@every_backend
def test_operators_are_well_behaved(backend: str) -> None:
    inputs = AdditiveCase("opcheck", **TINY, layout="swapped").make()
    lengths = torch.tensor([4, 2], dtype=torch.int32)
    v = inputs.v.expand(2, 3).contiguous()
    args = (inputs.query, inputs.key, inputs.value, v, lengths, 1 << 30, 1, 0, backend)
    leaves = [x.detach().requires_grad_() for x in args[:4]]
    torch.library.opcheck(attend.forward_op, (*leaves, *args[4:]))
    results = attend.forward_op(*args)
    grads = [torch.randn_like(results[0]).mT.contiguous().mT, torch.randn_like(results[1])]
    for needed in ([True] * 4, [False, True, False, True]):
        backward = attend.join_backward(grads, args, results, needed)
        torch.library.opcheck(attend.backward_op, backward)


@every_backend
@pytest.mark.parametrize("wanted", range(4), ids=("query", "key", "value", "v"))
def test_each_gradient_alone_is_what_it_is_among_all(wanted: int, backend: str) -> None:
    inputs = CASES[3].make()
    expected = inputs.run(backend)[2 + wanted]
    leaves = [inputs.query, inputs.key, inputs.value, inputs.v]
    leaves[wanted] = leaves[wanted].detach().requires_grad_()
    results = additive_attention(*leaves, return_lse=True, backend=backend, **inputs.options)
    (grad,) = torch.autograd.grad(results, leaves[wanted], inputs.upstream)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)


@every_backend
def test_gradient_of_lse_alone(backend: str) -> None:
    inputs = CASES[0].make()
    leaves = [x.detach().requires_grad_() for x in (inputs.query, inputs.key, inputs.v)]
    query, key, v = leaves
    _, lse = additive_attention(query, key, inputs.value, v, return_lse=True, backend=backend)
    actual = torch.autograd.grad(lse.square().sum(), leaves)
    plain = ((query[:, :, :, None] + key[:, :, None]).tanh() @ v).logsumexp(-1)
    expected = torch.autograd.grad(plain.square().sum(), leaves)
    torch.testing.assert_close(actual, expected)


@every_backend
def test_torch_func(backend: str) -> None:
    """Hessians and vmap: what the formulas and torch's loop over a batch give."""
    function, tensors = function_of(CASES[0].make(), backend)
    query, key, value, v, bias, g = (x.detach() for x in tensors)

    def loss(v: Tensor) -> Tensor:
        return function(query, key, value, v, bias, g)[0].square().sum()

    def plain_loss(v: Tensor) -> Tensor:
        scores = (query[:, :, :, None] + key[:, :, None] + bias).tanh() @ (g * v / v.norm())
        return (scores.softmax(-1) @ value).square().sum()

    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        torch.testing.assert_close(transform(loss)(v), transform(plain_loss)(v))

    def of_row(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return additive_attention(query, key, value, v, backend=backend)

    expected = additive_attention(query, key, value, v, backend=backend)
    torch.testing.assert_close(torch.vmap(of_row)(query, key, value), expected)


@every_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(dynamic: bool, backend: str) -> None:
    torch.compiler.reset()

    def loss(query: Tensor, key: Tensor, value: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        options = {"key_lengths": lengths, "band": Band.causal(), "g": 1.5, "bias": v}
        out, lse = additive_attention(
            query, key, value, v, return_lse=True, backend=backend, **options
        )
        return out.square().sum() + lse.masked_fill(lse == -math.inf, 0.0).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for len_q, len_k in ((5, 7), (6, 9)):
        inputs = AdditiveCase("compiled", len_q=len_q, len_k=len_k, heads=0).make()
        leaves = [inputs.query, inputs.key, inputs.value, inputs.v]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        lengths = torch.tensor([len_k, 3])
        losses = [function(*leaves, lengths) for function in (loss, compiled)]
        torch.testing.assert_close(losses[1], losses[0])
        expected, actual = (torch.autograd.grad(one, leaves) for one in losses)
        torch.testing.assert_close(actual, expected)


@every_backend
def test_autocast_lowers_the_operands_and_not_v(backend: str) -> None:
    inputs = AdditiveCase("autocast").make()
    operands = (inputs.query, inputs.key, inputs.value)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = additive_attention(*operands, inputs.v, g=2.0, return_lse=True, backend=backend)
    lowered = (x.bfloat16() for x in operands)
    expected = additive_attention(*lowered, inputs.v, g=2.0, return_lse=True, backend=backend)
    torch.testing.assert_close((out, lse), expected, rtol=0, atol=0)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32


@every_backend
def test_rows_without_keys_pass_nothing_on(backend: str) -> None:
    """The derivative of logaddexp(-inf, -inf) is NaN, and so may be what follows a dead row."""
    inputs = AdditiveCase("dead", **{**TINY, "len_q": 6}, band=Band.causal(-3)).make()
    leaves = [x.requires_grad_() for x in (inputs.query, inputs.key, inputs.value, inputs.v)]
    results = additive_attention(*leaves, return_lse=True, backend=backend, **inputs.options)
    upstream = [torch.randn_like(result) for result in results]
    clean = torch.autograd.grad(results, leaves, upstream, retain_graph=True)
    for grad in upstream:
        grad[:, :, :3] = torch.nan
    dirty = torch.autograd.grad(results, leaves, upstream)
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    assert (dirty[0][:, :, :3] == 0).all() and clean[1].abs().max() > 0


def test_saves_nothing_without_gradients() -> None:
    inputs = CASES[0].make()
    out = additive_attention(inputs.query, inputs.key, inputs.value, inputs.v)
    assert out.grad_fn is None
    assert {info.name for info in backends()} >= set(CPU_BACKENDS)
