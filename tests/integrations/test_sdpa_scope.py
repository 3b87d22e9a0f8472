"""The scope of sdpa(): when it is open, what it leaves behind, and torch's transforms in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from door_reports import door_reports
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fused_attention.integrations.torch_sdpa import sdpa

BUILTIN, MULTI_HEAD = F.scaled_dot_product_attention, F.multi_head_attention_forward


def names() -> tuple[Any, Any, bool]:
    path = torch.backends.mha.get_fastpath_enabled()
    return F.scaled_dot_product_attention, F.multi_head_attention_forward, path


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    assert names() == (BUILTIN, MULTI_HEAD, True)


def operands(len_q: int = 5, len_k: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, len_q, 8), *torch.randn(2, 2, 4, len_k, 8)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def served(function: Callable[[], object]) -> bool:
    """Whether the calls that the function makes are ours."""
    with door_reports() as lines:
        function()
    return len(lines) > 0 and all(" -> cpu: " in line for line in lines)


def call() -> Tensor:
    return F.scaled_dot_product_attention(*operands(), is_causal=True)


def test_opens_and_closes() -> None:
    assert not served(call)
    with sdpa():
        assert served(call)
        assert not torch.backends.mha.get_fastpath_enabled()
        with sdpa():
            assert served(call)
        assert served(call)
    assert not served(call)


def test_one_object_many_times() -> None:
    scope = sdpa()
    with scope, scope:
        assert served(call)
    with scope:
        assert served(call)


def test_decorates() -> None:
    decorated = sdpa()(call)
    assert served(decorated) and not served(call)


def test_an_error_closes_it() -> None:
    with pytest.raises(ZeroDivisionError), sdpa():
        raise ZeroDivisionError
    assert not served(call)


def test_a_user_who_turned_the_inference_path_off() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_our_function_outside_is_torchs() -> None:
    with sdpa():
        bound, multi_head = F.scaled_dot_product_attention, F.multi_head_attention_forward
    assert not served(lambda: bound(*operands()))
    torch.testing.assert_close(bound(*operands()), BUILTIN(*operands()), rtol=0, atol=0)
    x, weight = torch.randn(3, 1, 4), torch.randn(12, 4)
    args = (x, x, x, 4, 2, weight, None, None, None, False, 0.0, torch.eye(4), None)
    assert torch.equal(multi_head(*args)[0], MULTI_HEAD(*args)[0])


def test_another_library_that_replaces_the_name() -> None:
    """Whoever comes after us stays, calls us, and the next scope does not run in circles."""
    calls: list[str] = []
    try:
        with sdpa():
            ours = F.scaled_dot_product_attention

            def theirs(*args: Any, **kwargs: Any) -> Tensor:
                calls.append("theirs")
                return ours(*args, **kwargs)

            F.scaled_dot_product_attention = theirs
            assert served(call)
        assert F.scaled_dot_product_attention is theirs
        assert not served(call)
        with sdpa():
            assert served(call)
            F.scaled_dot_product_attention(*operands(), dropout_p=1.0)
        assert F.scaled_dot_product_attention is theirs
    finally:
        F.scaled_dot_product_attention = BUILTIN
    assert calls == ["theirs"] * 2


def test_threads() -> None:
    """The scope lasts from the first that enters to the last that leaves."""
    inside, leave = threading.Barrier(5), threading.Event()
    tensors, found = [x.detach() for x in operands()], []
    exact = BUILTIN(*tensors, is_causal=True)

    def work() -> None:
        for _ in range(20):
            with sdpa():
                found.append(F.scaled_dot_product_attention(*tensors, is_causal=True))
        with sdpa():
            inside.wait()
            leave.wait()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    inside.wait()
    assert served(call)
    leave.set()
    for thread in threads:
        thread.join()
    assert not served(call)
    assert len(found) == 80
    for out in found:
        torch.testing.assert_close(out, exact)


class Labelled(Tensor):
    """A subclass that knows the function by its name in torch.nn.functional."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return "the subclass's own"
        return super().__torch_function__(func, types, args, kwargs or {})


def test_subclasses_find_the_function_that_they_know() -> None:
    query, key, value = (x.detach() for x in operands())
    with sdpa(), door_reports() as lines:
        labelled = query.as_subclass(Labelled)
        out = F.scaled_dot_product_attention(labelled, key, value)
        assert served(call)  # the names are replaced again
    assert out == "the subclass's own"
    assert "torch's own, because a Labelled is not for these kernels" in lines[0]


def causal_masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def test_vmap_and_grad() -> None:
    query, key, value = operands()
    masks = torch.rand(2, 5, 9) < 0.7
    with sdpa():
        mapped = torch.func.vmap(F.scaled_dot_product_attention)(query, key, value, masks)
        gradient = torch.func.grad(lambda q: causal_masked(q, key, value).sum())(query)
    torch.testing.assert_close(mapped, BUILTIN(query, key, value, masks[:, None]))
    (exact,) = torch.autograd.grad(causal_masked(query, key, value).sum(), query)
    torch.testing.assert_close(gradient, exact)


def test_forward_mode_is_torchs() -> None:
    query, key, value = (x.detach() for x in operands())
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with sdpa(), math, door_reports() as lines:
        _, tangent = torch.func.jvp(
            lambda q: F.scaled_dot_product_attention(q, key, value), (query,), (query,)
        )
    assert tangent.shape == query.shape
    assert "because it has no forward-mode derivative" in lines[0]


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
def test_jit_trace_records_torchs_operator() -> None:
    tensors = operands()
    with sdpa():
        traced = torch.jit.trace(causal_masked, tensors)
    assert "scaled_dot_product_attention" in str(traced.graph)
    torch.testing.assert_close(traced(*tensors), causal_masked(*tensors))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    tensors = operands()
    exact = torch.autograd.grad(causal_masked(*tensors).sum(), tensors)
    with sdpa():
        out = checkpoint(causal_masked, *tensors, use_reentrant=reentrant)
        out.sum().backward()
    torch.testing.assert_close([x.grad for x in tensors], list(exact))


def test_double_backward() -> None:
    tensors = tuple(x.detach().double()[:1, :1].requires_grad_() for x in operands(3, 4))
    with sdpa():
        assert torch.autograd.gradgradcheck(causal_masked, tensors, fast_mode=True)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_export(strict: bool) -> None:
    class Model(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return causal_masked(query, key, value)

    tensors = operands()
    with sdpa():
        program = torch.export.export(Model(), tensors, strict=strict)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.fused_attention.forward.default in targets
    torch.testing.assert_close(program.module()(*tensors), causal_masked(*tensors))


def test_opened_inside_of_compiled_code() -> None:
    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        with sdpa():
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    fast = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in ((5, 9), (7, 4)):
        tensors = operands(*sizes)
        for mask in (None, torch.ones(sizes, dtype=torch.bool).tril(), torch.randn(sizes)):
            out = fast(*tensors, mask)
            torch.testing.assert_close(out, BUILTIN(*tensors, attn_mask=mask))
            torch.autograd.grad(out.sum(), tensors)
    assert names() == (BUILTIN, MULTI_HEAD, True)


def test_compiled_code_falls_back_as_eager_code_does() -> None:
    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    fast = torch.compile(function, fullgraph=True, backend="aot_eager")
    wide, (query, key, value) = torch.randn(1, 1, 3, 600), operands()
    with sdpa(), door_reports() as lines:
        torch.testing.assert_close(fast(wide, wide, wide), BUILTIN(wide, wide, wide))
        with pytest.raises(Exception, match="built-in function scaled_dot_product_attention"):
            fast(query, key[:, :3], value[:, :3])
        torch.testing.assert_close(fast(query, key, value), BUILTIN(query, key, value))
    outcomes = [line.partition("-> ")[2] for line in lines]
    assert outcomes == ["torch's own, because eager code says why", "cpu: in a compiled graph"]


@pytest.mark.slow
def test_inductor() -> None:
    tensors = operands()
    with sdpa():
        out = torch.compile(causal_masked, fullgraph=True)(*tensors)
        gradients = torch.autograd.grad(out.sum(), tensors)
    exact = causal_masked(*tensors)
    torch.testing.assert_close(out, exact)
    torch.testing.assert_close(gradients, torch.autograd.grad(exact.sum(), tensors))
