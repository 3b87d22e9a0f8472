"""torch.compile takes attention into one graph: no break, forward and backward, any shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from places import CPU_BACKENDS
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fused_attention import (
    Band,
    attention,
    attention_varlen,
    explain,
    merge_attention,
)

Function = Callable[..., Any]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function: Function, dynamic: bool | None = None) -> tuple[Function, Any]:
    """The function in one graph, and a counter of how often it was compiled."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=counter), counter


def featureless(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return attention(q, k, v)


def everything(q: Tensor, k: Tensor, v: Tensor) -> Any:
    batch, heads, len_q, _ = q.shape
    return attention(
        q,
        k,
        v,
        causal=True,
        window=(5, None),
        scale=0.3,
        bias=v[:1, :1, :1, :1] + torch.zeros(1, heads, len_q, 1),
        alibi_slopes=torch.linspace(0, 1, heads),
        softcap=4.0,
        sinks=q[0, :, 0, 0],
        kv_lengths=torch.full((batch,), k.shape[2] - 1),
        band_offsets=torch.arange(batch),
        dropout_p=0.3,
        return_lse=True,
    )


def packed(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """The rows of the whole batch as two sequences."""
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    ends_q = torch.arange(3) * (q.shape[0] // 2)
    ends_k = torch.arange(3) * (k.shape[0] // 2)
    return attention_varlen(
        q, k, v, ends_q, ends_k, window=(6, 1), dropout_p=0.2, dropout_seed=7, return_lse=True
    )


def in_halves(q: Tensor, k: Tensor, v: Tensor) -> Any:
    half = k.shape[2] // 2
    left = attention(q, k[:, :, :half], v[:, :, :half], return_lse=True)
    return merge_attention(*left, *attention(q, k[:, :, half:], v[:, :, half:], return_lse=True))


def operands(batch: int = 3, len_q: int = 7, len_k: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((batch, 4, len_q, 8), (batch, 2, len_k, 8), (batch, 2, len_k, 6))
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in shapes)
    return query, key, value


def results_and_gradients(function: Function, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """What it gives, and the gradients, from the same state of torch's generator."""
    torch.manual_seed(0)
    results = function(*tensors)
    results = results if isinstance(results, tuple) else (results,)
    loss = sum(x.masked_fill(x.isinf(), 0.0).sin().sum() for x in results)
    return [*results, *torch.autograd.grad(loss, tensors)]


@pytest.mark.parametrize(
    ("function", "dynamic"),
    [
        (featureless, False),
        (featureless, True),
        (everything, False),
        (everything, True),
        (packed, True),
        (in_halves, False),
    ],
)
def test_is_eager_mode_in_one_graph(function: Function, dynamic: bool) -> None:
    fast, counter = compiled(function, dynamic)
    frames = []
    # No two sizes are alike at first: torch takes for the same what is the same then.
    for sizes in ((3, 7, 10), (5, 9, 14), (6, 16, 12)):
        tensors = operands(*sizes)
        torch.testing.assert_close(
            results_and_gradients(fast, tensors), results_and_gradients(function, tensors)
        )
        frames.append(counter.frame_count)
    assert (frames[0] == frames[-1]) == dynamic


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_backend_compiles(backend: str) -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attention(q, k, v, causal=True, backend=backend)

    tensors = operands()
    torch.testing.assert_close(
        results_and_gradients(compiled(function)[0], tensors),
        results_and_gradients(function, tensors),
    )


def test_lengths_known_to_be_equal_stay_so() -> None:
    """Self-attention: offset Lk - Lq is 0 for every length."""
    fast, counter = compiled(lambda x: attention(x, x, x, causal=True), dynamic=True)
    frames = []
    for length in (5, 9, 17):
        x = torch.randn(3, 2, length, 8)
        torch.testing.assert_close(fast(x), attention(x, x, x, causal=True))
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1]


def test_dropout_is_drawn_anew_in_each_call() -> None:
    query = torch.ones(1, 1, 64, 8)
    fast, counter = compiled(lambda x: attention(x, x, x, dropout_p=0.5))
    first, second = fast(query), fast(query)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    third = fast(query)
    torch.manual_seed(3)
    assert torch.equal(attention(query, query, query, dropout_p=0.5), third)
    assert counter.frame_count == 1


def test_numbers_that_change_from_call_to_call() -> None:
    """A training loop counts the dropout's offset up; that must not compile anew each time."""
    query = torch.randn(1, 2, 16, 8)

    def function(x: Tensor, offset: int, left: int) -> Any:
        options = {"dropout_p": 0.5, "dropout_seed": 1, "dropout_offset": offset}
        return attention(x, x, x, window=(left, 0), **options)

    fast, counter = compiled(function)
    frames = []
    for step in range(2, 7):
        torch.testing.assert_close(fast(query, step, step + 2), function(query, step, step + 2))
        frames.append(counter.frame_count)
    assert frames[1] == frames[-1]  # the second call tells torch that they change


def test_autocast_inside_and_outside() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attention(x, x, x)

    x = torch.randn(1, 2, 8, 16)
    assert compiled(function)[0](x).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(lambda x: attention(x, x, x))[0](x).dtype == torch.bfloat16


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_mistakes_stay_readable(dynamic: bool) -> None:
    fast, _ = compiled(lambda q, k: attention(q, k, k), dynamic)
    with pytest.raises(Exception, match="key: its number of heads must divide query's 4, got 3"):
        fast(torch.randn(2, 4, 5, 8), torch.randn(2, 3, 5, 8))
    refused = compiled(lambda q: attention(q, q, q, backend="nonsense"), dynamic)[0]
    with pytest.raises(Exception, match="backend: must be one of .* got 'nonsense'"):
        refused(torch.randn(2, 4, 5, 8))
    with pytest.raises(Exception, match="query: must be 4-D .batch, heads, length, dim., got"):
        fast(torch.randn(5, 8), torch.randn(2, 3, 5, 8))


def test_wrong_numbers_are_found_when_the_graph_runs() -> None:
    fast, _ = compiled(lambda x, lengths: attention(x, x, x, kv_lengths=lengths))
    x = torch.randn(2, 1, 5, 8)
    fast(x, torch.tensor([1, 5]))
    with pytest.raises(ValueError, match=r"kv_lengths: must be in \[0, 5\] .* got 6 at index 1"):
        fast(x, torch.tensor([1, 6]))


def test_export_with_a_free_length() -> None:
    class Block(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return attention(x, x, x, band=Band.sliding(4))

    length = torch.export.Dim("length", min=2, max=1024)
    example = torch.randn(2, 3, 9, 8)
    program = torch.export.export(Block(), (example,), dynamic_shapes=({2: length},))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.fused_attention.forward.default in targets
    longer = torch.randn(2, 3, 31, 8)
    torch.testing.assert_close(program.module()(longer), Block()(longer))


@pytest.mark.slow
def test_compiled_ahead_of_time_to_a_file(tmp_path: Path) -> None:
    """Export, C++ by AOTInductor, a package on disk, and back: with a free length."""
    torch.manual_seed(0)
    projection, x = torch.nn.Linear(16, 48), torch.randn(2, 9, 16)

    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = projection(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            return attention(q, k, v, band=Band.sliding(4)).transpose(1, 2).flatten(2)

    length = torch.export.Dim("length", min=2, max=1024)
    with torch.no_grad():
        program = torch.export.export(Model(), (x,), dynamic_shapes=({1: length},))
        package = str(tmp_path / "model.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=package)
        loaded = torch._inductor.aoti_load_package(package)
        for len_x in (9, 31):
            x = torch.randn(2, len_x, 16)
            torch.testing.assert_close(loaded(x), Model()(x))


def test_explain_knows_fake_tensors() -> None:
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(1, 2, 1 << 20, 64)
        assert explain(fake, fake, fake, causal=True).chosen in CPU_BACKENDS
        out, lse = attention(fake, fake, fake, causal=True, return_lse=True)
    assert out.shape == fake.shape and lse.shape == fake.shape[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("function", [everything, packed])
def test_inductor(function: Function) -> None:
    fast = torch.compile(function, fullgraph=True, dynamic=True)
    for sizes in ((3, 7, 10), (5, 9, 14)):
        tensors = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in operands(*sizes))
        tensors = tuple(x.detach().requires_grad_() for x in tensors)
        shapes = [x.shape for x in results_and_gradients(function, tensors)]
        found = results_and_gradients(fast, tensors)
        assert [x.shape for x in found] == shapes
        if function is packed:  # inductor draws other random numbers than eager mode
            torch.testing.assert_close(found, results_and_gradients(function, tensors))
