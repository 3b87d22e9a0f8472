"""LuongAttention: every score and window against the paper step by step, gradients, lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from budget import assert_same
from torch import Tensor

from fused_attention.nn import LuongAttention

BATCH, STEPS, LENGTH, QUERY, KEY = 3, 5, 8, 6, 7
LENGTHS = torch.tensor([6, LENGTH, 1])
KINDS: dict[str, dict[str, Any]] = {
    "dot": {"score": "dot"},
    "general": {},
    "concat": {"score": "concat", "dim": 9},
    "location": {"score": "location", "max_length": 20},
    "location, few places": {"score": "location", "max_length": 4},
    "local-m dot": {"score": "dot", "window": "local-m", "width": 2},
    "local-m general": {"window": "local-m", "width": 1.5},
    "local-m concat": {"score": "concat", "window": "local-m", "width": 1},
    "local-p dot": {"score": "dot", "window": "local-p", "width": 2},
    "local-p general": {"window": "local-p", "width": 2.5},
    "local-p to the last": {"window": "local-p", "width": 1, "sigma": 0.7, "last_place": True},
    "local-p without Gaussian": {"window": "local-p", "width": 2, "sigma": math.inf},
}


def module(kind: str, dtype: torch.dtype = torch.float64) -> LuongAttention:
    torch.manual_seed(0)
    options = {"key_dim": key_dim(kind), **KINDS[kind]}
    layer = LuongAttention(QUERY, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.7)
    return layer


def key_dim(kind: str) -> int:
    return QUERY if "dot" in kind else KEY


def inputs(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Decoder states and encoder states."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((BATCH, STEPS, QUERY), (BATCH, LENGTH, key_dim(kind)))
    query, states = (torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes)
    return query.to(dtype).requires_grad_(), states.to(dtype).requires_grad_()


def score(layer: LuongAttention, h: Tensor, h_s: Tensor, place: int) -> Tensor:
    """Section 3.1."""
    if layer.score == "dot":
        return h @ h_s
    assert layer.query_proj is not None
    W = layer.query_proj.weight
    if layer.score == "general":
        return h @ (W.T @ h_s)  # h . W_a h_s with W_a = W^T
    if layer.score == "location":
        return (W @ h)[place]
    assert layer.key_proj is not None and layer.v is not None
    # One matrix over both states, as the paper writes it.
    both = torch.cat((W, layer.key_proj.weight), 1)
    return layer.v.weight[0] @ torch.tanh(both @ torch.cat((h, h_s)))


def place_of(layer: LuongAttention, h: Tensor, step: int, length: int) -> Tensor:
    """p of sections 3.2: the step, or equation 9."""
    if layer.window == "local-m":
        return torch.tensor(float(step))
    assert layer.place_proj is not None and layer.place_v is not None
    S = length - 1 if layer.last_place else length
    inner = layer.place_v.weight[0] @ torch.tanh(layer.place_proj.weight @ h)
    return S * torch.sigmoid(inner)


def attended(layer: LuongAttention, h: Tensor, states: Tensor, step: int) -> Tensor:
    """h~ of one step over the states of one source that exist."""
    places = list(range(len(states)))
    if layer.score == "location":
        assert layer.query_proj is not None
        places = places[: layer.query_proj.out_features]
    if layer.window != "global":
        p = place_of(layer, h, step, len(states))
        middle = math.floor(p.item())
        places = [s for s in places if middle - layer.width <= s <= middle + layer.width]
    context = torch.zeros_like(states[0])
    if places:
        weights = torch.stack([score(layer, h, states[s], s) for s in places]).softmax(0)
        for weight, s in zip(weights, places, strict=True):
            if layer.window == "local-p":
                weight = weight * torch.exp(-((s - p) ** 2) / (2 * layer.sigma**2))
            context = context + weight * states[s]
    return torch.tanh(layer.out_proj.weight @ torch.cat((context, h)))


def formula(layer: LuongAttention, query: Tensor, states: Tensor, first_step: int = 0) -> Tensor:
    rows = [
        attended(layer, h, states[b, :length], first_step + t)
        for b, length in enumerate(LENGTHS.tolist())
        for t, h in enumerate(query[b])
    ]
    return torch.stack(rows).unflatten(0, query.shape[:2])


def gradients(layer: LuongAttention, out: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(2)
    wanted = [*leaves, *layer.parameters()]
    return list(torch.autograd.grad(out, wanted, torch.randn_like(out)))


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_papers_formula_with_its_gradients(kind: str) -> None:
    layer, (query, states) = module(kind), inputs(kind)
    actual = layer(query, layer.remember(states, LENGTHS))
    expected = formula(layer, query, states)
    assert_close(layer, actual, expected)
    if "without Gaussian" in kind:  # nothing depends on the places then
        leaves = (query, states)
        found = [torch.autograd.grad(out.sum(), leaves) for out in (actual, expected)]
    else:
        found = [gradients(layer, out, (query, states)) for out in (actual, expected)]
        assert all(bool(gradient.any()) for gradient in found[0])
    assert_close(layer, *found)


def assert_close(layer: LuongAttention, actual: Any, expected: Any) -> None:
    assert_same(actual, expected, str(layer))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_alone_are_steps_together(kind: str) -> None:
    layer, (query, states) = module(kind), inputs(kind)
    annotations = layer.remember(states, LENGTHS)
    steps = [layer(step, annotations, t) for t, step in enumerate(query.split(1, 1))]
    assert_same(torch.cat(steps, 1), layer(query, annotations))
    later = layer(query[:, 2:], annotations, 2)
    assert_same(later, layer(query, annotations)[:, 2:])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_contexts(kind: str) -> None:
    layer, (query, states) = module(kind), inputs(kind)
    annotations = layer.remember(states, LENGTHS)
    weights = layer.weights(query, annotations)
    assert_same(weights @ annotations.states, layer.context(query, annotations))
    sums, exists = weights.sum(-1), torch.arange(LENGTH) < LENGTHS[:, None]
    assert not weights.masked_select(~exists[:, None].expand_as(weights)).any()
    if layer.window == "local-p" and layer.sigma < math.inf:
        assert (sums <= 1).all() and (sums < 0.99).any() and (sums > 0).any()
    else:
        empty = sums == 0  # local-m, far beyond a short source
        assert_same(sums[~empty], torch.ones_like(sums[~empty]))
        assert bool(empty.any()) == (layer.window == "local-m")


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_beyond_the_lengths_is_not_looked_at(kind: str) -> None:
    layer, (query, states) = module(kind), inputs(kind)
    expected = layer(query, layer.remember(states, LENGTHS))
    gone = torch.arange(LENGTH) >= LENGTHS[:, None]
    broken = states.detach().masked_fill(gone[..., None], torch.nan).requires_grad_()
    actual = layer(query, layer.remember(broken, LENGTHS))
    assert_same(actual, expected)
    found = torch.autograd.grad(actual.sum(), (query, broken, layer.out_proj.weight))
    again = torch.autograd.grad(expected.sum(), (query, states, layer.out_proj.weight))
    assert_same(found, again)
    assert not found[1][gone].any()


def test_places_are_within_each_row_and_in_fp32() -> None:
    layer, (query, states) = module("local-p general"), inputs("local-p general")
    annotations = layer.remember(states, LENGTHS)
    places = layer.places(1000 * query, annotations)
    assert ((places >= 0) & (places <= LENGTHS[:, None])).all()
    assert (places[0] > 5).any(), "S, not S - 1, is the paper's end"
    layer.last_place = True
    assert (layer.places(1000 * query, annotations) <= LENGTHS[:, None] - 1).all()
    with torch.autocast("cpu", torch.bfloat16):
        low = module("local-p general", torch.float32)
        places = low.places(query.float(), annotations)
    assert places.dtype == torch.float32
    steps = module("local-m general").places(query, annotations, 3)
    assert steps.tolist() == [[3.0, 4.0, 5.0, 6.0, 7.0]] * BATCH


@pytest.mark.parametrize("kind", ["general", "concat", "location", "local-m dot", "local-p dot"])
def test_bf16_autocast(kind: str) -> None:
    layer, (query, states) = module(kind, torch.float32), inputs(kind, torch.float32)
    wide = layer.context(query, layer.remember(states, LENGTHS))
    with torch.autocast("cpu", torch.bfloat16):
        low = layer.context(query, layer.remember(states, LENGTHS))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), wide, rtol=0.1, atol=0.1)
    low.float().sum().backward()


def test_compiled() -> None:
    kind = "local-p general"
    layer, (query, states) = module(kind), inputs(kind)

    def run(query: Tensor, states: Tensor, lengths: Tensor) -> Tensor:
        return layer(query, layer.remember(states, lengths))

    fast = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = [one(query, states, LENGTHS) for one in (fast, run)]
    assert_close(layer, *found)
    assert_close(layer, *(gradients(layer, out, (query, states)) for out in found))


def made(**options: Any) -> Callable[[], object]:
    return lambda: LuongAttention(4, 4, **options)


MISTAKES: dict[str, Callable[[], object]] = {
    "score: must be one of dot, general, concat, location, got 'mlp'": made(score="mlp"),
    "window: must be one of global, local-m, local-p, got 'p'": made(window="p"),
    "score: must compare states for the window local-m, got location": made(
        score="location", window="local-m"
    ),
    "score: must be dot or general for the window local-p, got concat": made(
        score="concat", window="local-p"
    ),
    "width: must be finite and at least 0, got -1": made(window="local-m", width=-1),
    "width: must be finite and at least 0, got nan": made(window="local-p", width=math.nan),
    "sigma: must be above 0, got 0": made(window="local-p", sigma=0.0),
    "max_length: must be at least 1, got 0": made(score="location", max_length=0),
    "key_dim: must be query_dim 4 for the score dot, got 5": lambda: LuongAttention(4, 5, "dot"),
    "query_dim: must be at least 1, got 0": lambda: LuongAttention(0, 5),
    r"query: must be \[batch, steps, 6\]": lambda: module("general")(
        torch.zeros(3, 2, 7), module("general").remember(torch.zeros(3, 2, 7).double())
    ),
    r"states: must be \[batch, length, 7\]": lambda: module("general").remember(torch.zeros(3)),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        MISTAKES[message]()


def test_a_global_attention_has_no_places() -> None:
    layer, (query, states) = module("general"), inputs("general")
    with pytest.raises(RuntimeError, match="window: must be local to have places, got global"):
        layer.places(query, layer.remember(states))
