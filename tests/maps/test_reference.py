"""The formulas of attention_maps against the weights that attention applies to its values."""

from __future__ import annotations

import pytest
import torch
from attention_case import AttentionCase
from maps_case import MapsInputs
from shapes import CASES

from fused_attention import Band, attention, attention_maps, merge_attention
from fused_attention.reference import attention_reference


@pytest.mark.parametrize("case", [c for c in CASES if not c.dropout_p], ids=str)
def test_weights_are_those_that_attention_gives_to_values(case: AttentionCase) -> None:
    """With the unit matrix as values the output of attention is its weights."""
    inputs = case.with_dtype(torch.float64).make()
    keys = inputs.key.shape[0 if case.packed else 2]
    value = torch.eye(keys, dtype=torch.float64)
    value = value[:, None] if case.packed else value.expand(*inputs.key.shape[:2], -1, -1)
    value = value.expand(-1, inputs.key.shape[1], -1) if case.packed else value
    out, _ = attention_reference(inputs.query, inputs.key, value, **inputs.reference_options)
    weights = out.transpose(0, 1) if case.packed else out
    maps = MapsInputs(inputs)
    heads = slice(None) if maps.heads is None else maps.heads
    weights = weights[heads] if case.packed else weights[:, heads]
    found = maps.exact
    logs = weights.log().masked_fill(weights == 0.0, 0.0)
    for actual, expected in (
        (found.weights, weights[..., maps.rows, :]),
        (found.column_mass, weights.sum(-2)),
        (found.entropy, -(weights * logs).sum(-1)),
    ):
        assert actual is not None and actual.shape == expected.shape
        assert (actual - expected).abs().max() < 1e-12 if actual.numel() else True
    if keys:
        top, key = weights.max(-1)
        assert torch.equal(found.argmax, key.masked_fill(top == 0.0, -1))


def brute_force_counts(maps: MapsInputs) -> torch.Tensor:
    """How many queries see each key, by the band's own mask."""
    case, inputs = maps.inputs.case, maps.inputs
    if not case.packed:
        lengths = (inputs.kv_lengths, None, inputs.band_offsets)
        mask = case.band.mask(inputs.query.shape[2], inputs.key.shape[2], *lengths)
        return mask.expand(inputs.query.shape[0], 1, -1, -1).sum(-2)
    counts = torch.zeros(inputs.key.shape[0], dtype=torch.int64)
    q_ends, k_ends = inputs.cu_seqlens_q, inputs.cu_seqlens_k
    assert q_ends is not None and k_ends is not None
    for b in range(len(q_ends) - 1):
        own = slice(int(k_ends[b]), int(k_ends[b + 1]))
        offsets = None if inputs.band_offsets is None else inputs.band_offsets[b : b + 1]
        len_q, len_k = int(q_ends[b + 1] - q_ends[b]), own.stop - own.start
        mask = case.band.mask(len_q, len_k, band_offsets=offsets)
        counts[own] = mask.reshape(len_q, len_k).sum(0)
    return counts


@pytest.mark.parametrize("case", CASES, ids=str)
def test_column_mean_is_that_of_the_queries_that_see_the_key(case: AttentionCase) -> None:
    maps = MapsInputs(case.make())
    found = maps.run("reference", column_mean=True)
    counts = brute_force_counts(maps)
    mass, mean = found.column_mass, found.column_mean
    assert mass is not None and mean is not None and mean.shape == mass.shape
    torch.testing.assert_close(mean * counts, mass)
    assert (mean.masked_fill((counts > 0).expand_as(mean), 0.0) == 0.0).all()


def test_entropy_with_sinks_is_that_of_all_outcomes() -> None:
    """Sinks as one more key give the same distribution."""
    inputs = AttentionCase("sinks", 2, 3, len_q=9, len_k=12, sinks=True).make()
    assert inputs.sinks is not None
    inputs.sinks[1] = -torch.inf
    _, lse = attention(inputs.query, inputs.key, inputs.value, sinks=inputs.sinks, return_lse=True)
    scores = torch.cat(
        [inputs.query @ inputs.key.mT * 0.25, inputs.sinks[:, None, None].expand(2, 3, 9, 1)], -1
    )
    expected = torch.special.entr(scores.softmax(-1)).sum(-1)
    operands = (inputs.query, inputs.key, lse)
    found = attention_maps(*operands, entropy=True, sinks=inputs.sinks)
    torch.testing.assert_close(found.entropy, expected)
    chosen = attention_maps(*operands, entropy=True, sinks=inputs.sinks, heads=[2, 0])
    torch.testing.assert_close(chosen.entropy, expected[:, [2, 0]])
    alone = attention_maps(*operands, entropy=True).entropy
    share = torch.special.entr((inputs.sinks[:, None] - lse).exp())
    torch.testing.assert_close(alone, expected - share)


def test_sinks_of_packed_rows() -> None:
    case = AttentionCase("sinks", heads_q=3, seq_lens_q=(4, 5), sinks=True, trailing=2)
    maps = MapsInputs(case.make())
    plain = maps.run("cpu", heads=[1, 2]).entropy
    found = maps.run("cpu", heads=[1, 2], **{"sinks": maps.sinks}).entropy
    assert maps.sinks is not None and plain is not None and found is not None
    share = torch.special.entr((maps.sinks[1:, None] - maps.lse[1:]).exp())
    torch.testing.assert_close(found[:, :9], (plain + share)[:, :9])


def test_parts_of_the_keys_add_up_to_the_whole() -> None:
    """With a merged lse each half contributes its own weights, mass and entropy."""
    inputs = AttentionCase("halves", 1, 2, len_q=30, len_k=50).make()
    query, key, value = inputs.query, inputs.key, inputs.value
    halves = [(key[:, :, s], value[:, :, s]) for s in (slice(20), slice(20, 50))]
    parts = [attention(query, k, v, return_lse=True) for k, v in halves]
    _, lse = merge_attention(*parts[0], *parts[1])
    asked = {"rows": range(30), "column_mass": True, "entropy": True}
    whole = attention_maps(query, key, lse, **asked)
    first, second = (attention_maps(query, k, lse, **asked) for k, _ in halves)
    assert whole.weights is not None and first.weights is not None and second.weights is not None
    torch.testing.assert_close(torch.cat([first.weights, second.weights], -1), whole.weights)
    assert first.column_mass is not None and second.column_mass is not None
    torch.testing.assert_close(
        torch.cat([first.column_mass, second.column_mass], -1), whole.column_mass
    )
    torch.testing.assert_close(first.entropy + second.entropy, whole.entropy)


def test_facts_of_a_uniform_and_of_a_one_hot_attention() -> None:
    """Equal scores: entropy ln n over n visible keys. One score far above: entropy 0."""
    query, key = torch.zeros(1, 1, 8, 4), torch.randn(1, 1, 8, 4)
    _, lse = attention(query, key, key, causal=True, return_lse=True)
    asked = {"entropy": True, "argmax": True, "column_mean": True, "causal": True}
    found = attention_maps(query, key, lse, **asked)
    torch.testing.assert_close(found.entropy[0, 0], torch.arange(1.0, 9.0).log())
    assert (found.argmax == 0).all()
    expected = [sum(1 / n for n in range(j + 1, 9)) / (8 - j) for j in range(8)]
    torch.testing.assert_close(found.column_mean[0, 0], torch.tensor(expected))
    eye = torch.eye(8)[None, None] * 100
    _, lse = attention(eye, eye, eye, return_lse=True)
    found = attention_maps(eye, eye, lse, entropy=True, argmax=True)
    assert (found.entropy == 0).all() and (found.argmax == torch.arange(8)).all()


def test_what_was_not_asked_for_is_none() -> None:
    query = torch.randn(1, 1, 5, 4)
    _, lse = attention(query, query, query, return_lse=True)
    found = attention_maps(query, query, lse, band=Band.causal(), column_mean=True)
    assert [name for name, value in found._asdict().items() if value is not None] == ["column_mean"]
