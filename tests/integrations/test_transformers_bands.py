"""Mask functions of transformers are read as the bands that they are, and no other function is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.4")

from transformers import masking_utils as hf  # noqa: E402

from fused_attention import Band  # noqa: E402
from fused_attention.integrations._transformers_bands import band_of  # noqa: E402
from fused_attention.masks import UNBOUNDED  # noqa: E402


@pytest.mark.parametrize(
    ("mask_function", "band"),
    [
        (hf.causal_mask_function, (UNBOUNDED, 0)),
        (hf.bidirectional_mask_function, (UNBOUNDED, UNBOUNDED)),
        (hf.sliding_window_causal_mask_function(3), (2, 0)),
        (hf.sliding_window_bidirectional_mask_function(2), (2, 2)),
        (hf.or_masks(hf.causal_mask_function), (UNBOUNDED, 0)),
    ],
)
def test_transformers_own(mask_function: Callable[..., Any], band: tuple[int, int]) -> None:
    assert band_of(mask_function) == Band(*band, 0)


@pytest.mark.parametrize(
    ("mask_function", "band"),
    [
        (lambda b, h, q, k: k <= q + 2, (UNBOUNDED, 2)),
        (lambda b, h, q, k: k < q + 2, (UNBOUNDED, 1)),
        (lambda b, h, q, k: q - k < 4, (3, UNBOUNDED)),
        (lambda b, h, q, k: q >= k, (UNBOUNDED, 0)),
        (lambda b, h, q, k: q > k - 1, (UNBOUNDED, 0)),
        (lambda b, h, q, k: abs(k - q) < 3, (2, 2)),
        (lambda b, h, q, k: (k <= q) & (k >= q - 5), (5, 0)),
        (lambda b, h, q, k: (k <= q) | (k <= q + 3), (UNBOUNDED, 3)),
        (lambda b, h, q, k: (k >= 0) & (k <= q), (UNBOUNDED, 0)),
    ],
)
def test_other_ways_to_write_a_band(
    mask_function: Callable[..., Any], band: tuple[int, int]
) -> None:
    assert band_of(mask_function) == Band(*band, 0)


@pytest.mark.parametrize(
    "mask_function",
    [
        lambda b, h, q, k: k <= q - 1,  # no query sees itself
        lambda b, h, q, k: (k <= q) | (k >= q + 3),
        lambda b, h, q, k: k <= 3,
        lambda b, h, q, k: k + q <= 3,
        lambda b, h, q, k: k * 2 <= q,
        lambda b, h, q, k: abs(k - q) < torch.tensor(3),
        lambda b, h, q, k: abs(abs(k - q)) <= 3,
        lambda b, h, q, k: k == q,
        lambda b, h, q, k: k <= q + b,
        lambda b, h, q, k: k <= torch.tensor(2),
        lambda b, h, q, k: True,
        lambda b, h, q, k: 1 // 0,
    ],
)
def test_functions_that_are_no_band(mask_function: Callable[..., Any]) -> None:
    assert band_of(mask_function) is None
