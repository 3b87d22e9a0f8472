"""Maps are the softmax of the scores, of the layers and heads that were asked for alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from budget import assert_same
from torch import Tensor, nn

from fused_attention import Band
from fused_attention.nn import (
    Attention,
    Sequences,
    alibi_slopes,
    attention_layers,
    pack,
    record_attention_maps,
)

DIM, HEADS, LENGTHS = 12, 4, torch.tensor([5, 2])


def model(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (Attention(DIM, HEADS, kv_heads=2, dtype=torch.float64, **options) for _ in range(2))
    return nn.Sequential(*layers).eval()


def tokens() -> Tensor:
    return torch.randn(2, 5, DIM, dtype=torch.float64)


def softmax_of_scores(layer: Attention, x: Tensor) -> Tensor:
    heads = layer.in_proj(x).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
    q, k, _ = heads.split((4, 2, 2), 1)
    scores = q @ k.repeat_interleave(2, 1).mT * layer.head_dim**-0.5
    if layer.slopes is not None:
        at = torch.arange(x.shape[1])
        distance = (at[:, None] - at).abs()
        scores = scores - alibi_slopes(HEADS)[:, None, None] * distance
    visible = layer.band.mask(x.shape[1], x.shape[1])
    return scores.masked_fill(~visible, -torch.inf).softmax(-1)


@pytest.mark.parametrize(
    "options",
    [{}, {"band": Band.causal()}, {"band": Band.sliding(2), "alibi": True}],
    ids=["full", "causal", "window, alibi"],
)
def test_are_the_weights(options: dict[str, Any]) -> None:
    both, x = model(**options), tokens()
    with record_attention_maps(both) as maps:
        out = both(x)
    assert list(maps) == list(attention_layers(both)) == ["0", "1"]
    assert_same(maps["0"][0].weights, softmax_of_scores(both[0], x))
    assert_same(maps["1"][0].weights, softmax_of_scores(both[1], both[0](x)))
    assert_same(out, both(x))
    assert len(maps["0"]) == 1, "calls outside of the context leave nothing"


def test_only_what_was_asked_for() -> None:
    both, x = model(), tokens()
    with record_attention_maps(both, ["1"], [3, 0]) as maps:
        both(x)
        both(x[:1])
    assert list(maps) == ["1"] and len(maps["1"]) == 2
    exact = softmax_of_scores(both[1], both[0](x))
    assert_same(maps["1"][0].weights, exact[:, [3, 0]])
    assert_same(maps["1"][1].weights, exact[:1, [3, 0]])


@pytest.mark.parametrize("packed", [True, False])
def test_sequences_come_one_by_one(packed: bool) -> None:
    layer, x = model(band=Band.causal())[0], tokens()
    with record_attention_maps(layer, heads=[1]) as maps:
        if packed:
            layer(pack(x, LENGTHS), Sequences.packed_from(LENGTHS))
        else:
            layer(x, Sequences(LENGTHS))
    for row, n in enumerate(LENGTHS):
        exact = softmax_of_scores(layer, x[row : row + 1, :n])[0, [1]]
        assert_same(maps[""][row].weights, exact)


def test_cross_attention() -> None:
    layer, x, states = model()[0], tokens(), tokens()[:, :3]
    with record_attention_maps(layer) as maps:
        layer(x, memory=layer.remember(states, Sequences(torch.tensor([3, 1]))))
    assert [tuple(one.weights.shape) for one in maps[""]] == [(4, 5, 3), (4, 5, 1)]
    for one in maps[""]:
        assert_same(one.weights.sum(-1), torch.ones_like(one.weights[..., 0]))


def test_chosen_rows_from_both_ends() -> None:
    layer, x = model(band=Band.causal())[0], tokens()
    with record_attention_maps(layer, rows=[0, -1, 4, -5]) as maps:
        layer(x, Sequences(LENGTHS))
    exact = softmax_of_scores(layer, x)
    assert_same(maps[""][0].weights, exact[0][:, [0, 4, 4, 0]])
    # Of two tokens: the first, the last; the others do not exist.
    assert_same(maps[""][1].weights, softmax_of_scores(layer, x[1:, :2])[0])


@pytest.mark.parametrize("packed", [True, False])
def test_facts_without_the_weights(packed: bool) -> None:
    layer, x = model(band=Band.causal())[0], tokens()
    facts = {"column_mass": True, "entropy": True, "argmax": True, "top_k": 2}
    with record_attention_maps(layer, heads=[2, 1], weights=False, **facts) as maps:
        if packed:
            layer(pack(x, LENGTHS), Sequences.packed_from(LENGTHS))
        else:
            layer(x, Sequences(LENGTHS))
    for row, n in enumerate(LENGTHS):
        one, exact = maps[""][row], softmax_of_scores(layer, x[row : row + 1, :n])[0, [2, 1]]
        assert one.weights is None and one.column_mean is None
        assert_same(one.column_mass, exact.sum(-2))
        assert_same(one.entropy, torch.special.entr(exact).sum(-1))
        assert torch.equal(one.argmax, exact.argmax(-1))
        assert_same(one.top_weights[..., 0], exact.amax(-1))


def test_mistakes() -> None:
    both = model()
    with (
        pytest.raises(TypeError, match="facts: must be of column_mass, .*, top_k, got entropies"),
        record_attention_maps(both, entropies=True),
    ):
        pass
    with (
        pytest.raises(ValueError, match="weights: must be True where no fact is asked for"),
        record_attention_maps(both, weights=False, top_k=0),
    ):
        pass
    with (
        pytest.raises(ValueError, match="layers: must be of 0, 1, got 2"),
        record_attention_maps(both, ["2"]),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"heads: must be in \[0, 4\), got 4"),
        record_attention_maps(both, heads=[4]),
    ):
        pass
    with (
        torch.no_grad(),
        record_attention_maps(both),
        pytest.raises(RuntimeError, match="cache: attention maps need all tokens in one call"),
    ):
        both[0](tokens(), cache=both[0].new_cache(2, 9))
    both[0](tokens())
