"""Masks of transformers: what is recognised in them is exactly the mask, and behaves like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", minversion="5.4")

from transformers import masking_utils as hf  # noqa: E402

from fused_attention import Band  # noqa: E402
from fused_attention.integrations import _transformers_masks as masks  # noqa: E402
from fused_attention.integrations._transformers_masks import (  # noqa: E402
    FusedMask,
    fused_attention_mask,
)
from fused_attention.integrations._transformers_visible import (  # noqa: E402
    Visible,
    remember,
    remembered,
)
from fused_attention.masks import UNBOUNDED  # noqa: E402

BANDED = {
    "causal": (hf.causal_mask_function, (UNBOUNDED, 0)),
    "full": (hf.bidirectional_mask_function, (UNBOUNDED, UNBOUNDED)),
    "sliding": (hf.sliding_window_causal_mask_function(3), (2, 0)),
    "around": (hf.sliding_window_bidirectional_mask_function(2), (2, 2)),
}
PADDINGS = {
    "none": None,
    "all there": ["111111", "111111"],
    "right": ["111000", "111111"],
    "left": ["000111", "111111"],
    "both": ["011110", "111111"],
    "holes": ["110111", "111111"],
    "a row of padding": ["000000", "111111"],
    "a row of padding beside left": ["000000", "011111"],
}


def padding(name: str) -> Tensor | None:
    rows = PADDINGS[name]
    return None if rows is None else torch.tensor([[c == "1" for c in row] for row in rows])


def shown_by(visible: Visible, batch: int, len_q: int, len_k: int) -> Tensor:
    """What `attention` would show with these arguments, bool [batch, 1, len_q, len_k]."""
    shown = visible.band.mask(
        len_q, len_k, visible.kv_lengths, band_offsets=visible.band_offsets
    ).expand(batch, 1, len_q, len_k)
    return shown if visible.bias is None else shown & (visible.bias == 0)


def shown_by_segments(visible: Visible, batch: int, length: int) -> Tensor:
    """What `attention_varlen` would show, each sequence put back at its place."""
    segments = visible.segments
    assert segments is not None and segments.cu_seqlens_k is None
    shown = torch.zeros(batch * length, batch * length, dtype=torch.bool)
    ends = segments.cu_seqlens_q.tolist()
    offsets = [0] * len(ends) if segments.band_offsets is None else segments.band_offsets.tolist()
    for begin, end, offset in zip(ends, ends[1:], offsets, strict=False):
        band = Band(visible.band.left, visible.band.right, offset)
        shown[begin:end, begin:end] = band.mask(end - begin, end - begin)
        assert end - begin <= (segments.max_seqlen_q or length)
    blocks = shown.view(batch, length, batch, length).diagonal(dim1=0, dim2=2)
    assert blocks.sum() == shown.sum()  # no sequence crosses rows
    return blocks.permute(2, 0, 1)[:, None]


@pytest.mark.parametrize("tracing", [False, True])
@pytest.mark.parametrize("pad", PADDINGS)
@pytest.mark.parametrize("name", BANDED)
@pytest.mark.parametrize(
    ("q_length", "q_offset", "kv_offset"), [(6, 0, 0), (1, 5, 0), (2, 4, 0), (2, 7, 3), (3, 0, 0)]
)
def test_same_as_the_tensor(
    name: str,
    pad: str,
    q_length: int,
    q_offset: int,
    kv_offset: int,
    tracing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masks, "is_tracing", lambda *_: tracing)
    seen = padding(pad)
    if seen is not None and kv_offset:  # a sliding cache has forgotten the first positions
        seen = torch.nn.functional.pad(seen, (kv_offset, 0), value=True)
    arguments: dict[str, Any] = {
        "batch_size": 2,
        "q_length": q_length,
        "kv_length": 6,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": BANDED[name][0],
        "attention_mask": seen,
    }
    mask = fused_attention_mask(**arguments)
    expected = hf.sdpa_mask(**arguments, allow_is_causal_skip=False)
    assert isinstance(mask, FusedMask)
    assert torch.equal(mask.tensor(), expected)
    assert torch.equal(shown_by(mask.visible, 2, q_length, 6), expected)
    if mask.visible.segments is not None:
        assert pad in ("left", "both", "a row of padding beside left")
        by_segments = shown_by_segments(mask.visible, 2, 6)
        rows = seen if seen is not None else torch.ones(2, 6).bool()
        assert torch.equal(by_segments[:, 0][rows], expected[:, 0][rows])
        assert not by_segments[:, 0][~rows].any()


def test_what_becomes_of_padding() -> None:
    """Lengths where they say it all, sequences to skip left padding, a bias only for holes."""

    def fields(pad: str, q_length: int = 6, name: str = "causal") -> set[str]:
        mask = fused_attention_mask(2, q_length, 6, 6 - q_length, 0, BANDED[name][0], padding(pad))
        assert isinstance(mask, FusedMask)
        return {
            field
            for field, value in zip(mask.visible._fields, mask.visible, strict=True)
            if value is not None
        } - {"band"}

    assert fields("none") == fields("all there") == set()
    assert fields("right") == {"kv_lengths"}
    assert fields("left") == {"bias", "segments"}
    assert fields("left", name="full") == {"bias"}
    assert fields("holes") == {"bias"}
    assert fields("left", q_length=1) == {"kv_lengths", "band_offsets"}


@pytest.mark.parametrize("tracing", [False, True])
def test_empty_places_of_a_static_cache(tracing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The band hides them by itself: no lengths, although the mask is shorter than the cache."""
    monkeypatch.setattr(masks, "is_tracing", lambda *_: tracing)
    there = torch.ones(2, 4, dtype=torch.bool)
    mask = fused_attention_mask(2, 4, 9, torch.tensor(0), 0, attention_mask=there)
    assert isinstance(mask, FusedMask)
    expected = hf.sdpa_mask(2, 4, 9, 0, 0, attention_mask=there, allow_is_causal_skip=False)
    assert torch.equal(shown_by(mask.visible, 2, 4, 9), expected)
    if not tracing:
        assert mask.visible == Visible(Band.causal(offset=0))
    else:
        assert mask.visible.band_offsets is not None


@pytest.mark.parametrize("tracing", [False, True])
def test_places_beyond_the_padding_mask_are_empty(
    tracing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no band hides them."""
    monkeypatch.setattr(masks, "is_tracing", lambda *_: tracing)
    options: dict[str, Any] = {"mask_function": BANDED["full"][0]}
    options["attention_mask"] = torch.ones(2, 4, dtype=torch.bool)
    mask = fused_attention_mask(2, 4, 9, **options)
    assert isinstance(mask, FusedMask)
    expected = hf.sdpa_mask(2, 4, 9, **options, allow_is_causal_skip=False)
    assert torch.equal(shown_by(mask.visible, 2, 4, 9), expected)
    assert not expected[..., 4:].any()


def test_a_step_with_a_static_cache_is_a_tensor() -> None:
    """generate makes it in advance and hands it to a compiled forward pass."""
    mask = fused_attention_mask(2, 1, 9, torch.tensor(4), 0, allow_is_causal_skip=False)
    assert isinstance(mask, Tensor) and mask.shape == (2, 1, 1, 9)
    assert mask[0, 0, 0].tolist() == [True] * 5 + [False] * 4


def test_what_a_tensor_shows_is_noted_on_it_until_it_changes() -> None:
    """All layers get the tensor of a step; it is looked at once."""
    mask = fused_attention_mask(2, 1, 9, torch.tensor(4), 0, allow_is_causal_skip=False)
    assert isinstance(mask, Tensor)
    noted = remembered(mask)
    assert noted is not None and noted is remembered(mask)
    assert noted.kv_lengths.tolist() == [5, 5]
    mask[1, 0, 0, 4:] = False
    assert remembered(mask) is None
    assert remembered(torch.ones(2, 1, 1, 9)) is None
    with torch.inference_mode():  # such tensors do not count their changes, nor are they changed
        other = torch.ones(2, 1, 1, 9, dtype=torch.bool)
        assert remembered(remember(other, noted)) is noted


def test_made_in_advance() -> None:
    mask = fused_attention_mask(2, 4, 4)
    assert fused_attention_mask(2, 4, 4, attention_mask=mask) is mask


POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]])


def packed(mask_function: Callable[..., Any]) -> Callable[..., Any]:
    """As transformers wraps a mask function for position_ids that start anew."""
    numbers = hf.find_packed_sequence_indices(POSITIONS)
    if hasattr(hf, "packed_sequence_compatibility_function"):
        return hf.packed_sequence_compatibility_function(mask_function, POSITIONS, numbers)
    return hf.and_masks(mask_function, hf.packed_sequence_mask_function(numbers))


@pytest.mark.parametrize("name", BANDED)
def test_packed_sequences(name: str) -> None:
    arguments: dict[str, Any] = {"mask_function": packed(BANDED[name][0])}
    mask = fused_attention_mask(2, 6, 6, **arguments, allow_is_causal_skip=False)
    expected = hf.sdpa_mask(2, 6, 6, **arguments, allow_is_causal_skip=False)
    assert isinstance(mask, FusedMask) and mask.visible.bias is None
    assert mask.visible.segments is not None
    assert mask.visible.segments.cu_seqlens_q.tolist() == [0, 3, 6, 8, 12]
    assert mask.visible.segments.max_seqlen_q == 4
    assert torch.equal(shown_by_segments(mask.visible, 2, 6), expected)


def with_image(batch: Any, head: Any, q_idx: Any, kv_idx: Any) -> Any:
    image = torch.tensor([0, 1, 1, 1, 0, 0]).bool()
    return image[q_idx] & image[kv_idx]


@pytest.mark.parametrize(
    "mask_function",
    [
        hf.or_masks(hf.causal_mask_function, with_image),
        hf.chunked_causal_mask_function(3, torch.tensor([0, 1])),
        packed(hf.or_masks(hf.causal_mask_function, with_image)),
        hf.and_masks(hf.causal_mask_function, packed(hf.causal_mask_function)),
        lambda batch, head, q, k: k < q,
        lambda batch, head, q, k: (k <= q) & (batch >= 0),
        lambda batch, head, q, k: (q - k) % 2 == 0,
    ],
)
def test_any_other_function_becomes_a_bias(mask_function: Callable[..., Any]) -> None:
    options: dict[str, Any] = {"mask_function": mask_function, "allow_is_causal_skip": False}
    expected = hf.sdpa_mask(2, 6, 6, **options)
    mask = fused_attention_mask(2, 6, 6, **options, dtype=torch.bfloat16)
    assert isinstance(mask, FusedMask) and mask.visible.bias is not None
    assert mask.visible.bias.dtype == torch.bfloat16
    assert torch.equal(shown_by(mask.visible, 2, 6, 6), expected)
    assert torch.equal(mask.tensor(), expected)


def test_behaves_like_the_tensor() -> None:
    padded = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    mask = fused_attention_mask(2, 4, 4, attention_mask=padded)
    expected = mask.tensor()
    assert mask.shape == expected.shape and mask.dtype == torch.bool
    assert mask.dim() == mask.ndim == 4 and mask.device == expected.device
    assert torch.equal(mask[:, :, -1:], expected[:, :, -1:])
    assert torch.equal(~mask, ~expected)
    assert torch.equal(torch.cat((mask, mask), -1), torch.cat((expected, expected), -1))
    assert torch.equal(torch.zeros(4, 4).masked_fill(mask, 1.0), expected.float())
    assert torch.equal(mask & expected, expected)
    assert torch.equal(mask.to(torch.float32), expected.float())
    assert mask.contiguous() is mask
    with pytest.raises(AttributeError):
        getattr(mask, "no_such_thing")  # noqa: B009


def test_moves_between_devices() -> None:
    padded = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    mask = fused_attention_mask(2, 4, 4, attention_mask=padded)
    moved = mask.to("meta")
    assert isinstance(moved, FusedMask)
    assert moved.visible.bias.device.type == moved.tensor().device.type == "meta"
    assert moved.visible.segments.cu_seqlens_q.device.type == "meta"
    assert moved.visible.segments.max_seqlen_q == mask.visible.segments.max_seqlen_q


@pytest.mark.parametrize("model", ["NllbMoe", "Llama"])
def test_models_that_know_only_eager_meet_its_mask(model: str) -> None:
    """They may read numbers out of it: 0 where visible, the lowest number elsewhere."""
    import transformers

    config = getattr(transformers, f"{model}Config")()
    mask = fused_attention_mask(1, 2, 2, config=config, dtype=torch.float32)
    seen = mask[0, 0].tolist()
    lowest = torch.finfo(torch.float32).min
    assert seen == ([[0, lowest], [0, 0]] if model == "NllbMoe" else [[True, False], [True, True]])
