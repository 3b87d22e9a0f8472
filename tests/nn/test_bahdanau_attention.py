"""BahdanauAttention: the paper's formula step by step, gradients, lengths, weights, mistakes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from budget import assert_same
from torch import Tensor

from fused_attention.nn import BahdanauAttention

BATCH, STEPS, LENGTH, QUERY, KEY, HIDDEN = 3, 4, 6, 5, 7, 9
LENGTHS = torch.tensor([4, LENGTH, 1])


def module(normed: bool = False, dtype: torch.dtype = torch.float64) -> BahdanauAttention:
    torch.manual_seed(0)
    layer = BahdanauAttention(QUERY, KEY, HIDDEN, normed=normed, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Decoder states and encoder states."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((BATCH, STEPS, QUERY), (BATCH, LENGTH, KEY))
    query, states = (torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes)
    return query.to(dtype).requires_grad_(), states.to(dtype).requires_grad_()


def formula(layer: BahdanauAttention, query: Tensor, states: Tensor, lengths: Tensor) -> Tensor:
    """Contexts, one step and one annotation after the other (section 3.1, appendix A.1.2)."""
    W, U, v = layer.query_proj.weight, layer.key_proj.weight, layer.v
    contexts = []
    for b, length in enumerate(lengths.tolist()):
        for s in query[b]:
            scores = []
            for h in states[b, :length]:
                if layer.g is None or layer.bias is None:
                    scores.append(v @ torch.tanh(W @ s + U @ h))
                else:
                    hidden = torch.tanh(W @ s + U @ h + layer.bias)
                    scores.append(layer.g * v / v.norm() @ hidden)
            weights = torch.stack(scores).softmax(0)
            contexts.append(sum(a * h for a, h in zip(weights, states[b], strict=False)))
    return torch.stack(contexts).unflatten(0, (BATCH, STEPS))


def gradients(layer: BahdanauAttention, out: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(2)
    wanted = [*leaves, *layer.parameters()]
    return list(torch.autograd.grad(out, wanted, torch.randn_like(out)))


@pytest.mark.parametrize("normed", [False, True])
def test_is_the_papers_formula_with_its_gradients(normed: bool) -> None:
    layer, (query, states) = module(normed), inputs()
    actual = layer(query, layer.remember(states, LENGTHS))
    expected = formula(layer, query, states, LENGTHS)
    assert_same(actual, expected)
    found = [gradients(layer, out, (query, states)) for out in (actual, expected)]
    assert len(found[0]) == (7 if normed else 5)
    assert_same(*found)


def test_weights_are_those_of_the_contexts() -> None:
    layer, (query, states) = module(), inputs()
    annotations = layer.remember(states, LENGTHS)
    weights = layer.weights(query, annotations)
    assert_same(weights @ states, layer(query, annotations))
    assert_same(weights.sum(-1), torch.ones(BATCH, STEPS, dtype=torch.float64))
    assert not weights[0, :, 4:].any() and (weights[2, :, 0] == 1).all()


def test_what_lies_beyond_the_lengths_is_not_looked_at() -> None:
    layer, (query, states) = module(), inputs()
    expected = layer(query, layer.remember(states, LENGTHS))
    gone = torch.arange(LENGTH) >= LENGTHS[:, None]
    broken = states.detach().masked_fill(gone[..., None], torch.nan).requires_grad_()
    actual = layer(query, layer.remember(broken, LENGTHS))
    assert_same(actual, expected)
    found = gradients(layer, actual, (query, broken))
    assert_same(found, gradients(layer, expected, (query, states)))
    assert not found[1][gone].any()


def test_steps_alone_are_steps_together() -> None:
    layer, (query, states) = module(), inputs()
    annotations = layer.remember(states, LENGTHS)
    steps = [layer(step, annotations) for step in query.split(1, 1)]
    assert_same(torch.cat(steps, 1), layer(query, annotations))


def test_rows_that_are_repeated_for_beams() -> None:
    layer, (query, states) = module(), inputs()
    annotations = layer.remember(states, LENGTHS).repeated(2)
    twice = layer(query.repeat_interleave(2, 0), annotations)
    assert_same(twice[1::2], layer(query, layer.remember(states, LENGTHS)))


def test_bf16_autocast() -> None:
    layer, (query, states) = module(dtype=torch.float32), inputs(torch.float32)
    expected = layer(query, layer.remember(states, LENGTHS))
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer(query, layer.remember(states, LENGTHS))
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1)
    gradients(layer, actual, (query, states))


def test_compiled() -> None:
    layer, (query, states) = module(normed=True), inputs()

    def run(query: Tensor, states: Tensor, lengths: Tensor) -> Tensor:
        return layer(query, layer.remember(states, lengths))

    fast = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = [one(query, states, LENGTHS) for one in (fast, run)]
    assert_same(*found)
    assert_same(*(gradients(layer, out, (query, states)) for out in found))


def test_initial_values_of_the_normed_variant() -> None:
    layer = BahdanauAttention(16, 8, normed=True)
    assert layer.dim == 16 and layer.g is not None and layer.bias is not None
    assert layer.g.item() == pytest.approx(0.25) and not layer.bias.any()
    assert layer.v.abs().max() <= 0.25 and layer.v.any()


def asked(query: object, states: object, lengths: object = None) -> Callable[[], object]:
    layer = module()
    return lambda: layer(query, layer.remember(states, lengths))


QUERIES, STATES = (x.detach() for x in inputs())
MISTAKES: dict[str, Callable[[], object]] = {
    "dim: must be at least 1, got 0": lambda: BahdanauAttention(3, 3, 0),
    "key_dim: must be at least 1, got -1": lambda: BahdanauAttention(3, -1),
    "query: must be a torch.Tensor, got list": asked([1.0], STATES),
    r"query: must be \[batch, steps, 5\], got shape \(3, 4, 7\)": asked(
        torch.zeros(3, 4, 7), STATES
    ),
    r"query: must be \[batch, steps, 5\], got shape \(3, 5\)": asked(QUERIES[:, 0], STATES),
    "query: must have the annotations' batch 3, got 2": asked(QUERIES[:2], STATES),
    r"states: must be \[batch, length, 7\], got shape \(3, 7\)": asked(QUERIES, STATES[:, 0]),
    "lengths: must have 3 entries, got 2": asked(QUERIES, STATES, LENGTHS[:2]),
    "lengths: must be an integer tensor": asked(QUERIES, STATES, LENGTHS.double()),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        MISTAKES[message]()
