"""Masks as tensors are recognised exactly when they are a band and lengths, and cheaply."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fused_attention import Band
from fused_attention.masks import UNBOUNDED
from fused_attention.nn import recognition
from fused_attention.nn.recognition import Shape, Visibility, recognize

SCORES = (2, 3, 5, 7)


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small masks are worth looking at in these tests."""
    monkeypatch.setattr(recognition, "_FEWEST_SCORES", 0)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Shape]:
    """Grows whenever a mask is looked at."""
    looks: list[Shape] = []
    look = recognition._recognize

    def counted(mask: Tensor, scores: Shape, true_hides: bool) -> Visibility | None:
        looks.append(scores)
        return look(mask, scores, true_hides)

    monkeypatch.setattr(recognition, "_recognize", counted)
    return looks


def shown(found: Visibility, scores: Shape = SCORES) -> Tensor:
    batch, _, len_q, len_k = scores
    return found.band.mask(len_q, len_k, found.kv_lengths).expand(batch, 1, len_q, len_k)


def causal(diagonal: int = 0) -> Tensor:
    return torch.ones(SCORES[2:], dtype=torch.bool).tril(diagonal)


def padding(*lengths: int) -> Tensor:
    return (torch.arange(SCORES[3]) < torch.tensor(lengths)[:, None])[:, None, None]


def added(mask: Tensor, dtype: torch.dtype = torch.float32, hides: float = -torch.inf) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, hides)


MASKS = {
    "causal": (causal(), Band.causal(0), None),
    "bottom right": (causal(2), Band.causal(2), None),
    "window": (causal(1).triu(-1), Band.window(2, 0, 1), None),
    "anti-causal": (torch.ones(5, 7, dtype=torch.bool).triu(1), Band.window(0, None, 1), None),
    "everything": (torch.ones(5, 7, dtype=torch.bool), Band.window(None, None, 0), None),
    "nothing": (torch.zeros(5, 7, dtype=torch.bool), Band.window(None, None, 0), [0, 0]),
    "diagonal above all rows": (causal(-5), Band.window(None, None, 0), [0, 0]),
    "padding": (padding(4, 7), Band.window(None, None, 0), [4, 7]),
    "padding of all": (padding(0, 3), Band.window(None, None, 0), [0, 3]),
    "no padding": (padding(7, 7), Band.window(None, None, 0), None),
    "padding alike": (padding(4)[0, 0, 0], Band.window(None, None, 0), [4, 4]),
    "causal and padding": (causal(2) & padding(3, 6), Band.causal(2), [3, 6]),
    "window and padding": (causal().triu(-2) & padding(5, 1), Band.window(2, 0, 0), [5, 1]),
}


@pytest.mark.parametrize("name", MASKS)
def test_band_and_lengths(name: str) -> None:
    mask, band, lengths = MASKS[name]
    forms = {
        "bool": mask,
        "-inf": added(mask),
        "-inf of fp16": added(mask, torch.float16),
        "of every head": mask.expand(SCORES).clone(),
        "expanded": mask.expand(SCORES),
        "a view": torch.stack([mask, mask])[1],
        "strided": torch.stack([mask, mask], -1)[..., 0],
    }
    for form, tensor in forms.items():
        found = recognize(tensor, SCORES)
        assert found is not None, form
        got = None if found.kv_lengths is None else found.kv_lengths.tolist()
        assert (found.band, got) == (band, lengths), form
        assert torch.equal(shown(found), mask.expand(2, 1, 5, 7)), form


def test_what_true_means() -> None:
    found = recognize(~causal(), SCORES, true_hides=True)
    assert found is not None and found.band == Band.causal(0)


REFUSED = {
    "left padding": ~padding(3, 0),
    "one key missing": causal(2).logical_and(torch.arange(35).view(5, 7) != 15),
    "one key too many": causal() | (torch.arange(35).view(5, 7) == 6),
    "a hole in every diagonal": causal(3) & ~torch.ones(5, 7, dtype=torch.bool).tril(0).triu(0),
    "heads that differ": causal().expand(3, 5, 7).clone().index_fill(0, torch.tensor(1), True),
    "rows of the batch that differ": torch.stack([causal(1), causal(0)])[:, None],
    "the same for all keys": torch.tensor([[True], [True], [False], [True], [True]]),
    "a bias": torch.randn(5, 7),
    "a bias after zeros": torch.zeros(5, 7).index_put((torch.tensor(4),), torch.tensor(1.0)),
    "not a number": added(causal()).masked_fill(causal(-3), torch.nan),
    "the lowest fp16": added(causal(), torch.float16, torch.finfo(torch.float16).min),
    "integers": causal().int(),
    "too many dimensions": causal()[None, None, None],
    "the wrong length": torch.ones(5, 6, dtype=torch.bool),
    "the wrong heads": torch.ones(2, 5, 7, dtype=torch.bool),
    "no key at all": torch.ones(5, 0, dtype=torch.bool),
    "a number": torch.tensor(True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else(name: str) -> None:
    assert recognize(REFUSED[name], SCORES) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_lowest_number_hides_only_beside_a_visible_key(dtype: torch.dtype) -> None:
    lowest = torch.finfo(dtype).min
    found = recognize(added(causal(), dtype, lowest), SCORES)
    assert found is not None and found.band == Band.causal(0)
    # A row of lowest numbers alone is a uniform average; a row of -inf is 0.
    assert recognize(added(causal(-1), dtype, lowest), SCORES) is None
    assert recognize(added(causal(-1), dtype), SCORES) is not None


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**30), st.data())
@settings(max_examples=150, deadline=None)
def test_recognised_is_exact_and_complete(
    batch: int, len_q: int, len_k: int, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ends = st.one_of(st.integers(0, 7), st.just(UNBOUNDED))
    band = Band(data.draw(ends), data.draw(ends), data.draw(st.integers(-7, 7)))
    lengths = torch.randint(0, len_k + 1, (batch,), generator=generator)
    mask = band.mask(len_q, len_k, lengths)
    scores = (batch, 1, len_q, len_k)
    found = recognize(mask, scores)
    assert found is not None and torch.equal(shown(found, scores), mask)
    flipped = mask.clone()
    flipped.view(-1)[torch.randint(mask.numel(), (1,), generator=generator)] ^= True
    again = recognize(flipped, scores)
    assert again is None or torch.equal(shown(again, scores), flipped)


def test_a_mask_is_looked_at_once(looks: list[Shape]) -> None:
    mask = causal()
    for _ in range(3):
        recognize(mask, SCORES)
    assert len(looks) == 1
    recognize(mask[None, None], SCORES)
    recognize(mask[None, None], SCORES)
    assert len(looks) == 2  # two views are alike


def test_a_changed_mask_is_looked_at_again(looks: list[Shape]) -> None:
    mask = causal()
    view = mask[None]
    assert recognize(view, SCORES) is not None
    mask[0, 0] = False
    assert recognize(view, SCORES) is None
    mask[0, 0] = True
    found = recognize(view, SCORES)
    assert found is not None and len(looks) == 3


def test_other_sizes_and_meanings_are_looked_at_again(looks: list[Shape]) -> None:
    mask = torch.ones(1, 7, dtype=torch.bool)
    for scores in (SCORES, (1, 1, 1, 7), (4, 1, 2, 7)):
        recognize(mask, scores)
        recognize(mask, scores, true_hides=True)
    assert len(looks) == 6


def test_nothing_outlives_its_mask() -> None:
    before = set(recognition._remembered)
    mask = causal()
    recognize(mask, SCORES)
    recognize(mask[None], SCORES)
    assert len(set(recognition._remembered) - before) == 1
    del mask
    gc.collect()
    assert set(recognition._remembered) <= before


def test_many_views_are_not_hoarded() -> None:
    mask = torch.ones(1, 500, dtype=torch.bool)
    for length in range(1, 300):
        assert recognize(mask[:, :length], (1, 1, 1, length)) is not None
    views = recognition._remembered[id(mask)].views
    assert len(views) <= recognition._VIEWS_REMEMBERED


def test_inference_tensors_do_not_count_their_changes(looks: list[Shape]) -> None:
    with torch.inference_mode():
        mask = causal()
        assert recognize(mask, SCORES) is not None
        mask[0, 0] = False
        assert recognize(mask, SCORES) is None
    assert len(looks) == 2


def fake() -> Visibility | None:
    with torch._subclasses.FakeTensorMode():
        return recognize(torch.ones(5, 7, dtype=torch.bool), SCORES)


def batched() -> Visibility | None:
    found: list[Visibility | None] = []

    def function(mask: Tensor) -> Tensor:
        found.append(recognize(mask, SCORES))
        return mask

    torch.func.vmap(function)(causal()[None])
    return found[0]


def with_gradient() -> Visibility | None:
    return recognize(added(causal()).requires_grad_(), SCORES)


def on_a_device() -> Visibility | None:
    return recognize(causal().to("meta"), SCORES)


@pytest.mark.parametrize("numbers", [fake, batched, with_gradient, on_a_device])
def test_numbers_that_cannot_be_had(
    numbers: Callable[[], Visibility | None], looks: list[Shape]
) -> None:
    assert numbers() is None
    assert looks == []


def test_few_scores_are_not_worth_it(monkeypatch: pytest.MonkeyPatch, looks: list[Shape]) -> None:
    monkeypatch.undo()
    assert recognize(causal(), SCORES) is None
    large = torch.ones(128, 128, dtype=torch.bool).tril()
    found = recognize(large, (1, 1, 128, 128))
    assert found is not None and found.band == Band.causal(0)
