"""torch.func: reverse mode works at every order, forward mode says that it does not."""

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
        scalars = (3, 3, 0.5, 0.0, 1 << 30, 1 << 30, 0, 0.0)
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


def _dual(x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return attention(X, X, forward_ad.make_dual(x, x))


FORWARD_MODE: dict[str, Callable[[], object]] = {
    "jvp": lambda: jvp(ours("reference"), (X,), (X,)),
    "jacfwd": lambda: jacfwd(ours("reference"))(X),
    "hessian": lambda: hessian(loss(ours("reference")))(X),
    "jvp of grad": lambda: jvp(grad(loss(ours("reference"))), (X,), (X,)),
    "grad of jvp": lambda: grad(lambda x: jvp(ours("reference"), (x,), (X,))[1].sum())(X),
    "dual number": lambda: _dual(X),
    "dual number with gradient": lambda: _dual(X.clone().requires_grad_()),
}


@pytest.mark.parametrize("name", FORWARD_MODE)
def test_forward_mode_is_refused_plainly(name: str) -> None:
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative; use reverse"):
        FORWARD_MODE[name]()


def test_forward_mode_of_something_else_is_no_obstacle() -> None:
    with forward_ad.dual_level():
        other = forward_ad.make_dual(X, X) * 2
        assert torch.equal(attention(X, X, X), attention(X, X, X))
        assert forward_ad.unpack_dual(other).tangent is not None
