"""The operators of local attention under autograd, torch.func, torch.compile and autocast."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from local_case import NAMES, LocalCase, LocalInputs
from torch import Tensor

from fused_attention import local_attention
from fused_attention.local.operator import ORDER, attend

TINY = {"len_q": 4, "len_k": 6, "head_dim": 3, "value_dim": 2, "dtype": torch.float64}
CASES = (
    LocalCase("per_query", **TINY, width=2.5, sigma="query"),
    LocalCase("log_bias", **TINY, width=3.0, sigma="head", mode="log_bias", heads_q=4),
    LocalCase("lengths", **TINY, width=2.0, sigma="all", key_lengths=(6, 3)),
    LocalCase("no_gaussian", **TINY, width=1.0, sigma="inf"),
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
CPU_BACKENDS = [one.NAME for one in ORDER if not one.DEVICE_TYPES or "cpu" in one.DEVICE_TYPES]
every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def function_of(inputs: LocalInputs, backend: str) -> tuple[Callable[..., Any], list[Tensor]]:
    """(out, lse) as a function of the differentiable tensors, and those; dead rows' lse is 0."""
    # In the middle of keys, where the window does not move with the position.
    position = inputs.position.floor() + 0.3 + 0.4 * torch.rand_like(inputs.position)
    leaves = [*inputs.leaves[:3], position, *inputs.leaves[4:]]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        options = {"sigma": tensors[4] if len(tensors) == 5 else inputs.sigma, **inputs.options}
        out, lse = local_attention(*tensors[:4], return_lse=True, backend=backend, **options)
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    return function, [leaf.detach().nan_to_num().requires_grad_() for leaf in leaves]


@every_backend
@every_case
def test_gradients_are_numerical_derivatives(case: LocalCase, backend: str) -> None:
    function, tensors = function_of(case.make(), backend)
    assert torch.autograd.gradcheck(
        function, tensors, fast_mode=True, check_forward_ad=True, check_batched_grad=True
    )


@every_backend
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"len_q": 0}], ids=str)
def test_gradient_of_an_empty_sum(sizes: dict[str, int], backend: str) -> None:
    """It is one expanded number, whose strides mean nothing."""
    function, tensors = function_of(LocalCase("", **sizes).make(), backend)
    for grad in torch.autograd.grad(function(*tensors)[0].sum(), tensors, allow_unused=True):
        assert grad is None or (grad == 0).all()


@every_backend
@every_case
def test_double_backward_is_a_numerical_derivative(case: LocalCase, backend: str) -> None:
    function, tensors = function_of(case.make(), backend)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@every_backend
@pytest.mark.parametrize("sigma", ["query", "number"])
def test_operators_are_well_behaved(sigma: str, backend: str) -> None:
    inputs = LocalCase("opcheck", **TINY, layout="swapped", sigma=sigma).make()
    lengths = torch.tensor([6, 3], dtype=torch.int32)
    leaves = [x.detach().requires_grad_() for x in inputs.leaves]
    sigmas = leaves[4] if sigma == "query" else None
    args = (*leaves[:4], sigmas, lengths, 2.5, 1.5, 0.3, True, backend)
    torch.library.opcheck(attend.forward_op, args)
    args = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
    results = attend.forward_op(*args)
    grads = [torch.randn_like(results[0]).mT.contiguous().mT, torch.randn_like(results[1])]
    for needed in ([True] * 4 + [sigma == "query"], [False, True, False, True, False]):
        torch.library.opcheck(
            attend.backward_op, attend.join_backward(grads, args, results, needed)
        )


@every_backend
@pytest.mark.parametrize("wanted", range(5), ids=NAMES)
def test_each_gradient_alone_is_what_it_is_among_all(wanted: int, backend: str) -> None:
    inputs = LocalCase("alone", sigma="query", key_lengths=(50, 20)).make()
    expected = inputs.run(backend)[2 + wanted]
    leaves = inputs.leaves
    leaves[wanted] = leaves[wanted].detach().requires_grad_()
    results = local_attention(
        *leaves[:4], sigma=leaves[4], return_lse=True, backend=backend, **inputs.options
    )
    (grad,) = torch.autograd.grad(results, leaves[wanted], inputs.upstream)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)


@every_backend
def test_gradient_of_lse_alone(backend: str) -> None:
    """In luong mode lse knows no Gaussian, with log_bias it does."""
    for mode in ("luong", "log_bias"):
        case = LocalCase("lse", sigma="query", mode=mode, dtype=torch.float64, width=100.0)
        inputs = case.make()
        leaves = [x.detach().requires_grad_() for x in inputs.leaves]
        query, key, _, position, sigma = leaves
        options = {**inputs.options, "sigma": sigma, "return_lse": True, "backend": backend}
        _, lse = local_attention(*leaves[:4], **options)
        asked = [query, key, position, sigma]
        actual = torch.autograd.grad(lse.square().sum(), asked)
        scores = query @ key.mT / 4
        if mode == "log_bias":
            distance = torch.arange(50) - position[..., None]
            scores = scores - (distance / sigma[..., None]).square() / 2
        plain = scores.logsumexp(-1)
        found = torch.autograd.grad(plain.square().sum(), asked, allow_unused=True)
        expected = [
            torch.zeros_like(x) if g is None else g for g, x in zip(found, asked, strict=True)
        ]
        torch.testing.assert_close(list(actual), expected)


@every_backend
def test_torch_func(backend: str) -> None:
    """Hessians and vmap: what the formulas and torch's loop over a batch give."""
    inputs = LocalCase("func", **TINY, width=100.0, sigma="number").make()
    query, key, value, position = (x.detach() for x in inputs.leaves)

    def loss(position: Tensor) -> Tensor:
        operands = (query, key, value, position)
        return local_attention(*operands, width=100, sigma=2, backend=backend).square().sum()

    def plain_loss(position: Tensor) -> Tensor:
        gaussian = (-(((torch.arange(6) - position[..., None]) / 2) ** 2) / 2).exp()
        weights = (query @ key.mT * 3**-0.5).softmax(-1) * gaussian
        return (weights @ value).square().sum()

    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        torch.testing.assert_close(transform(loss)(position), transform(plain_loss)(position))

    def of_row(*operands: Tensor) -> Tensor:
        return local_attention(*operands, width=2, backend=backend)

    rows = [x.unsqueeze(1) for x in (query, key, value, position)]
    expected = local_attention(query, key, value, position, width=2, backend=backend)
    torch.testing.assert_close(torch.vmap(of_row)(*rows).squeeze(1), expected)


@every_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(dynamic: bool, backend: str) -> None:
    torch.compiler.reset()

    def loss(query: Tensor, key: Tensor, value: Tensor, raw: Tensor, sigma: Tensor) -> Tensor:
        lengths = torch.tensor([key.shape[2], 3])
        position = key.shape[2] * raw.sigmoid()
        options = {"key_lengths": lengths, "width": 2, "sigma": sigma, "backend": backend}
        out, lse = local_attention(query, key, value, position, return_lse=True, **options)
        return out.square().sum() + lse.masked_fill(lse == -math.inf, 0.0).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for len_q, len_k in ((5, 7), (6, 9)):
        inputs = LocalCase("compiled", len_q=len_q, len_k=len_k, sigma="head").make()
        leaves = [leaf.requires_grad_() for leaf in inputs.leaves]
        losses = [function(*leaves) for function in (loss, compiled)]
        torch.testing.assert_close(losses[1], losses[0])
        expected, actual = (torch.autograd.grad(one, leaves) for one in losses)
        torch.testing.assert_close(actual, expected)


@every_backend
def test_autocast_lowers_the_operands_and_not_the_position(backend: str) -> None:
    inputs = LocalCase("autocast", len_k=1000, sigma="query").make()
    operands = (inputs.query, inputs.key, inputs.value)
    options = {**inputs.options, "sigma": inputs.sigma, "return_lse": True, "backend": backend}
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = local_attention(*operands, inputs.position, **options)
    lowered = (x.bfloat16() for x in operands)
    expected = local_attention(*lowered, inputs.position, **options)
    torch.testing.assert_close((out, lse), expected, rtol=0, atol=0)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32


@every_backend
@pytest.mark.parametrize("mode", ["luong", "log_bias"])
def test_empty_windows_pass_nothing_on(mode: str, backend: str) -> None:
    """The derivative of logaddexp(-inf, -inf) is NaN, and so may be what follows a dead row."""
    inputs = LocalCase("dead", sigma="query", mode=mode, key_lengths=(50, 30)).make()
    leaves = [x.detach().requires_grad_() for x in inputs.leaves]
    options = {**inputs.options, "sigma": leaves[4], "return_lse": True, "backend": backend}
    results = local_attention(*leaves[:4], **options)
    dead = results[1] == -torch.inf
    assert dead.any() and not dead.all() and (results[0][dead] == 0).all()
    upstream = [torch.randn_like(result) for result in results]
    clean = torch.autograd.grad(results, leaves, upstream, retain_graph=True)
    for grad in upstream:
        grad[dead] = torch.nan
    dirty = torch.autograd.grad(results, leaves, upstream)
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    for index in (0, 3, 4):
        assert (dirty[index][dead] == 0).all() and clean[index].abs().max() > 0


@every_backend
@pytest.mark.parametrize("mode", ["luong", "log_bias"])
def test_scores_that_are_all_minus_infinity_are_no_keys(mode: str, backend: str) -> None:
    """Products of finite numbers that leave fp32."""
    inputs = LocalCase("overflow", sigma="query", mode=mode, width=100.0).make()
    inputs.query[:, :, 3], inputs.key[:] = 1e30, -1e30
    leaves = [x.detach().requires_grad_() for x in inputs.leaves]
    options = {**inputs.options, "sigma": leaves[4], "return_lse": True, "backend": backend}
    out, lse = local_attention(*leaves[:4], **options)
    assert (out[:, :, 3] == 0).all() and (lse[:, :, 3] == -torch.inf).all()
    grads = torch.autograd.grad(out[:, :, 3].sum() + lse[:, :, 3].sum(), leaves)
    assert all((grad == 0).all() for grad in grads)


def test_saves_nothing_without_gradients() -> None:
    inputs = CASES[0].make()
    operands = (inputs.query, inputs.key, inputs.value, inputs.position)
    assert local_attention(*operands, width=3).grad_fn is None
    assert local_attention(*operands, width=3, sigma=torch.tensor(2.0)).grad_fn is None
