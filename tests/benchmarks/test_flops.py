"""Useful FLOPs against counting the mask's entries."""

from __future__ import annotations

import itertools

import pytest

from fused_attention import Band
from fused_attention.benchmarks.flops import flops_in_direction, forward_flops, visible_pairs

BANDS = (
    Band.full(),
    Band.causal(),
    Band.causal(offset=0),
    Band.causal(offset=-7),
    Band.sliding(4),
    Band.window(3, 2),
    Band.window(0, None),
    Band.window(2, 2, offset=30),
)


@pytest.mark.parametrize("band", BANDS, ids=str)
def test_visible_pairs_are_the_mask_s_entries(band: Band) -> None:
    for len_q, len_k in itertools.product((0, 1, 5, 12), (0, 1, 7, 12)):
        assert visible_pairs(band, len_q, len_k) == int(band.mask(len_q, len_k).sum())


def test_flops_of_full_attention() -> None:
    assert forward_flops(Band.full(), 10, 20, 8) == 4 * 10 * 20 * 8
    assert forward_flops(Band.full(), 10, 20, 8, value_dim=16) == 2 * 10 * 20 * (8 + 16)
    assert flops_in_direction(100, "forward") == 100
    assert flops_in_direction(100, "backward") == 250
