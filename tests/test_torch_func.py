"""torch.func: reverse mode and forward mode, at every order and one inside the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from places import CPU_BACKENDS
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from fused_attention import Band, attention, attention_varlen, autograd
from fused_attention.reference import attention_reference

every_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)

Attend = Callable[[Tensor], Tensor]


def ours(backend: str) -> Attend:
    return lambda x: attention(x, x[:, :1], x[:, 1:], causal=True, sinks=SINKS, backend=backend)


def formula(x: Tensor) -> Tensor:
    return attention_reference(x, x[:, :1], x[:, 1:], band=Band.causal(), sinks=SINKS)[0]


SINKS = torch.tensor([0.3, -0.2], dtype=torch.float64)
X = torch.linspace(-1, 1, 2 * 2 * 3 * 2, dtype=torch.float64).sin().view(2, 2, 3, 2)


def loss(attend: Attend) -> Callable[[Tensor], Tensor]:
    return lambda x: _squares(attend(x))


def gradient_norm(attend: Attend) -> Callable[[Tensor], Tensor]:
    return lambda x: _squares(grad(loss(attend))(x))


TRANSFORMS: dict[str, Callable[[Attend], Tensor]] = {
    "grad": lambda attend: grad(loss(attend))(X),
    "grad of grad": lambda attend: grad(gradient_norm(attend))(X),
    "vjp": lambda attend: vjp(attend, X)[1](X.cos())[0],
    "vjp of grad": lambda attend: vjp(grad(loss(attend)), X)[1](X.cos())[0],
    "jacrev": lambda attend: jacrev(attend)(X),
    "jacrev in chunks": lambda attend: jacrev(attend, chunk_size=5)(X),
    "jacrev of jacrev": lambda attend: jacrev(jacrev(loss(attend)))(X),
    "jacrev of grad": lambda attend: jacrev(grad(loss(attend)))(X),
    "grad of jacrev": lambda attend: grad(lambda x: _squares(jacrev(attend)(x)))(X),
    "vmap of jacrev of grad": lambda attend: vmap(jacrev(grad(loss(attend))))(X[None]),
    "third derivative": lambda attend: grad(lambda x: _squares(jacrev(gradient_norm(attend))(x)))(
        X
    ),
    "jacrev inside autograd": lambda attend: _jacobian_inside_autograd(attend),
}


def _squares(x: Tensor) -> Tensor:
    return x.square().sum()


def _jacobian_inside_autograd(attend: Attend) -> Tensor:
    x = X.clone().requires_grad_()
    return torch.autograd.grad(_squares(jacrev(attend)(x)), x)[0]


@every_backend
@pytest.mark.parametrize("name", TRANSFORMS)
def test_reverse_mode(name: str, backend: str) -> None:
    transform = TRANSFORMS[name]
    torch.testing.assert_close(transform(ours(backend)), transform(formula))


def test_reverse_mode_through_lse_and_packed_batches() -> None:
    cu_seqlens = torch.tensor([0, 3, 4])
    x = torch.randn(4, 2, 3, dtype=torch.float64)

    def lse_sum(x: Tensor) -> Tensor:
        return attention_varlen(x, x, x, cu_seqlens, return_lse=True)[1].square().sum()

    variable = x.clone().requires_grad_()
    torch.testing.assert_close(
        grad(lse_sum)(x), torch.autograd.grad(lse_sum(variable), variable)[0]
    )


def test_operator_itself_under_torch_func() -> None:
    """Not only the functions above it."""

    def attend(x: Tensor) -> Tensor:
        none = (None,) * 8
        scalars = (3, 3, 0.5, 0.0, 1 << 30, 1 << 30, 0, 0.0, False)
        return autograd.forward_op(x, x, x, *none, *scalars, "reference")[0]

    exact = grad(loss(lambda x: attention_reference(x, x, x, scale=0.5)[0]))(X)
    torch.testing.assert_close(grad(loss(attend))(X), exact)


def test_gradients_of_a_modules_parameters() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sinks = torch.nn.Parameter(SINKS.clone())

        def forward(self, x: Tensor) -> Tensor:
            return attention(x, x, x, sinks=self.sinks)

    block = Block()
    parameters = dict(block.named_parameters())
    found = grad(lambda p: functional_call(block, p, (X,)).square().sum())(parameters)
    block(X).square().sum().backward()
    assert block.sinks.grad is not None and (block.sinks.grad != 0).all()
    torch.testing.assert_close(found["sinks"], block.sinks.grad)


def _dual(attend: Attend, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(attend(forward_ad.make_dual(x, X.cos()))).tangent
        assert tangent is not None
        return tangent


def _direction(attend: Attend) -> Attend:
    return lambda x: jvp(attend, (x,), (X.cos(),))[1]


FORWARD_MODE: dict[str, Callable[[Attend], Tensor]] = {
    "jvp": lambda attend: _direction(attend)(X),
    "primal of jvp": lambda attend: jvp(attend, (X,), (X.cos(),))[0],
    "jacfwd": lambda attend: jacfwd(attend)(X),
    "jacfwd of jacfwd": lambda attend: jacfwd(jacfwd(loss(attend)))(X),
    "hessian": lambda attend: hessian(loss(attend))(X),
    "jacrev of jacfwd": lambda attend: jacrev(jacfwd(loss(attend)))(X),
    "jvp of grad": lambda attend: _direction(grad(loss(attend)))(X),
    "jvp of grad of grad": lambda attend: _direction(grad(gradient_norm(attend)))(X),
    "grad of jvp": lambda attend: grad(lambda x: _squares(_direction(attend)(x)))(X),
    "jvp of jvp": lambda attend: _direction(_direction(attend))(X),
    "vmap of jvp": lambda attend: vmap(_direction(attend))(torch.stack([X, X.cos()])),
    "dual number": lambda attend: _dual(attend, X),
}


@every_backend
@pytest.mark.parametrize("name", FORWARD_MODE)
def test_forward_mode(name: str, backend: str) -> None:
    transform = FORWARD_MODE[name]
    torch.testing.assert_close(transform(ours(backend)), transform(formula))


@every_backend
def test_gradient_of_a_dual_number(backend: str) -> None:
    """Backward through the tangent and through the primal of one dual number."""
    attend = ours(backend)
    x = X.clone().requires_grad_()
    with forward_ad.dual_level():
        out, tangent = forward_ad.unpack_dual(attend(forward_ad.make_dual(x, X.cos())))
        assert tangent is not None
        (found,) = torch.autograd.grad(_squares(tangent) + out.sin().sum(), x)
    # By torch.func: torch's logsumexp has no backward under forward_ad.
    exact = grad(lambda x: _squares(_direction(formula)(x)) + formula(x).sin().sum())(X)
    torch.testing.assert_close(found, exact)


def test_forward_mode_of_something_else_is_no_obstacle() -> None:
    with forward_ad.dual_level():
        other = forward_ad.make_dual(X, X) * 2
        assert torch.equal(attention(X, X, X), attention(X, X, X))
        assert forward_ad.unpack_dual(other).tangent is not None
