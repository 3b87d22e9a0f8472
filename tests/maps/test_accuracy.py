"""Every backend of attention_maps on every case of shapes.py, within the error budget."""

from __future__ import annotations

import pytest
import torch
from attention_case import AttentionCase
from hypothesis import HealthCheck, given, settings
from maps_case import MapsInputs
from places import PLACES, Place
from shapes import CASES, DTYPES, attention_cases
from torch import Tensor

from fused_attention import Band, _ext

# Tiers above avx512 have no products of their own here.
CPU_PLACES = [p for p in PLACES if p.isa in ("portable", "avx2", "avx512")]
GPU_PLACES = [p for p in PLACES if p.backend == "triton"]
BF16 = torch.bfloat16
NAMES = {case.name: case for case in CASES}
# The interpreter is slow: each feature and each kind of edge once.
TRITON_CASES = (
    *(NAMES[name] for name in ("one_of_everything", "no_keys", "more_queries", "dim_3")),
    *(NAMES[name] for name in ("sliding", "window_far_away", "offsets", "bias_bhqk", "softcap")),
    *(NAMES[name] for name in ("kv_lengths_causal", "alibi_both_sides", "negative_scale")),
    *(NAMES[name] for name in ("packed_lengths_differ", "packed_nothing", "layout_shared")),
    *(NAMES[name].with_dtype(BF16) for name in ("everything", "packed_empty_sequences")),
    AttentionCase("grouped", 1, 6, 2, len_q=70, len_k=130, head_dim=40, band=Band.causal()),
)


@pytest.fixture
def poisoned_results(poisoned_allocations: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers too start as what no kernel writes."""
    allocate = torch.Tensor.new_empty

    def poisoned(*args, **kwargs) -> Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor if tensor.is_floating_point() else tensor.fill_(-77)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def force(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.isa:
        monkeypatch.setattr(_ext, "cpu_isa", lambda: place.isa)


def check(case: AttentionCase, place: Place, **options: int) -> None:
    maps = MapsInputs(case.make(0, place.device), **options)
    maps.check(maps.run(place.backend))


@pytest.mark.parametrize("place", CPU_PLACES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(case, place, poisoned_results, monkeypatch):
    force(place, monkeypatch)
    for dtype in DTYPES:
        check(case.with_dtype(dtype), place)


@pytest.mark.parametrize("place", GPU_PLACES, ids=str)
@pytest.mark.parametrize("case", TRITON_CASES, ids=str)
def test_triton_within_budget(case, place, poisoned_results):
    check(case, place)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=attention_cases())
def test_random_problems_within_budget(case, poisoned_results):
    check(case, CPU_PLACES[0])


LONG = (
    AttentionCase("long", 1, 1, len_q=700, len_k=1500, head_dim=64),
    AttentionCase("long_window", 1, 2, 1, len_q=1300, head_dim=32, band=Band.window(200, 9)),
    AttentionCase("long_packed", heads_q=2, seq_lens_q=(300, 500), band=Band.causal(), trailing=9),
)


@pytest.mark.parametrize("place", CPU_PLACES, ids=str)
@pytest.mark.parametrize("top_k", [1, 20])
@pytest.mark.parametrize("case", LONG, ids=str)
def test_many_tiles_within_budget(case, place, top_k, poisoned_results, monkeypatch):
    force(place, monkeypatch)
    check(case, place, top_k=top_k)


@pytest.mark.parametrize("place", GPU_PLACES, ids=str)
@pytest.mark.parametrize("top_k", [1, 20])
def test_many_triton_tiles_within_budget(place, top_k, poisoned_results):
    case = AttentionCase("long", 1, 1, len_q=70, len_k=300, head_dim=16, band=Band.causal())
    check(case, place, top_k=top_k)


@pytest.mark.parametrize("place", [*CPU_PLACES, *GPU_PLACES], ids=str)
def test_of_equal_weights_the_lower_key_is_the_first(place, monkeypatch):
    """Scores of a few values: most are ties, within a tile and between tiles."""
    force(place, monkeypatch)
    inputs = AttentionCase("ties", 1, 2, len_q=40, len_k=200, head_dim=16).make(0, place.device)
    inputs.query.copy_(torch.ones(()))
    inputs.key.copy_((inputs.key[..., :1] * 2).round())
    maps = MapsInputs(inputs, top_k=9)
    found, exact = maps.run(place.backend), maps.exact
    assert torch.equal(found.top_indices, exact.top_indices)
    assert torch.equal(found.argmax, exact.argmax)


@pytest.mark.parametrize("place", [*CPU_PLACES, *GPU_PLACES], ids=str)
def test_weights_that_round_to_zero_have_an_order(place, monkeypatch):
    """Scores 300 apart: all weights but the first are 0 in fp32, and the keys are known."""
    force(place, monkeypatch)
    inputs = AttentionCase("far", 1, 1, len_q=20, len_k=90, head_dim=1).make(0, place.device)
    inputs.query.fill_(300.0)
    inputs.key.copy_(torch.randperm(90).view(1, 1, 90, 1))
    maps = MapsInputs(inputs, top_k=5)
    expected = inputs.key[0, 0, :, 0].argsort(descending=True)[:5]
    found = maps.run(place.backend)
    assert found.top_indices is not None and found.top_weights is not None
    assert (found.top_indices == expected).all()
    assert (found.top_weights[..., 1:] == 0.0).all()


@pytest.mark.parametrize("place", [*CPU_PLACES, *GPU_PLACES], ids=str)
def test_rows_that_lse_calls_dead_see_nothing(place, monkeypatch):
    """An lse of -inf counts, whatever the mask says."""
    force(place, monkeypatch)
    maps = MapsInputs(AttentionCase("dead", 1, 2, len_q=70, len_k=80).make(0, place.device))
    maps.lse[..., ::2] = -torch.inf
    maps.check(maps.run(place.backend))
    assert (maps.run(place.backend, argmax=True).argmax[..., ::2] == -1).all()


@pytest.mark.parametrize("place", [*CPU_PLACES, *GPU_PLACES], ids=str)
def test_a_key_whose_scores_are_minus_infinity_gets_nothing(place, monkeypatch):
    """Lanes and rows beyond the last query multiply it by 0, which is NaN."""
    force(place, monkeypatch)
    inputs = AttentionCase("infinite", 1, 1, len_q=37, len_k=50).make(0, place.device)
    inputs.query.abs_()
    inputs.key[:, :, 20] = -torch.inf
    maps = MapsInputs(inputs)
    found = maps.run(place.backend)
    maps.check(found)
    assert found.column_mass is not None and found.column_mass[0, 0, 20] == 0.0


@pytest.mark.parametrize("isa", [p.isa for p in PLACES if p.isa.startswith(("avx512_", "amx"))])
def test_the_best_tiers_are_avx512_here(isa, monkeypatch):
    maps = MapsInputs(NAMES["everything"].with_dtype(BF16).make(0))
    results = []
    for tier in ("avx512", isa):
        monkeypatch.setattr(_ext, "cpu_isa", lambda tier=tier: tier)
        results.append(maps.run("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True) if a is not None)
