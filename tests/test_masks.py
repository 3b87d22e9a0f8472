"""The band against its definition, by brute force; every implementation of the tile algebra."""

from __future__ import annotations

from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fused_attention.masks import UNBOUNDED, Band, TileKind, band_kv_range, band_visible

ENDS = (0, 1, 2, 5, UNBOUNDED)
OFFSETS = (-UNBOUNDED, -6, -3, -1, 0, 1, 2, 4, 7, UNBOUNDED)
BANDS = tuple(product(ENDS, ENDS, OFFSETS))
LENGTH = 4
SPANS = [(begin, end) for begin in range(LENGTH + 1) for end in range(begin, LENGTH + 1)]


def visible(left: int, right: int, offset: int, i: int, j: int, kv_length: int) -> bool:
    """The definition, once more and independent of the code."""
    return i + offset - left <= j <= i + offset + right and j < kv_length


def table(band: tuple[int, int, int], kv_length: int) -> list[list[bool]]:
    return [[visible(*band, i, j, kv_length) for j in range(LENGTH)] for i in range(LENGTH)]


def as_range(indices: list[int]) -> tuple[int, int]:
    """[begin, end) of indices that must be contiguous."""
    if not indices:
        return 0, 0
    assert indices == list(range(indices[0], indices[-1] + 1))
    return indices[0], indices[-1] + 1


class TestTileAlgebra:
    """Over `band_algebra`, so over Python and C++ alike."""

    @pytest.mark.parametrize("kv_length", range(LENGTH + 1))
    def test_ranges_of_keys(self, band_algebra: ModuleType, kv_length: int) -> None:
        for ends in BANDS:
            band, rows = band_algebra.Band(*ends), table(ends, kv_length)
            for q_begin, q_end in SPANS:
                seen_by = [sum(row[j] for row in rows[q_begin:q_end]) for j in range(LENGTH)]
                count = q_end - q_begin
                any_sees = as_range([j for j in range(LENGTH) if seen_by[j]])
                all_see = as_range([j for j in range(LENGTH) if count and seen_by[j] == count])
                where = (ends, q_begin, q_end, kv_length)
                actual = band_algebra.band_kv_range(band, q_begin, q_end, kv_length)
                assert actual == any_sees, where
                actual = band_algebra.band_full_kv_range(band, q_begin, q_end, kv_length)
                assert actual == all_see, where

    @pytest.mark.parametrize("len_q", range(LENGTH + 1))
    def test_ranges_of_queries(self, band_algebra: ModuleType, len_q: int) -> None:
        for ends in BANDS:
            band, rows = band_algebra.Band(*ends), table(ends, kv_length=LENGTH)[:len_q]
            for k_begin, k_end in SPANS:
                expected = as_range([i for i in range(len_q) if any(rows[i][k_begin:k_end])])
                actual = band_algebra.band_q_range(band, k_begin, k_end, len_q)
                assert actual == expected, (ends, k_begin, k_end, len_q)

    @pytest.mark.parametrize("kv_length", range(LENGTH + 1))
    def test_kinds_of_tiles(self, band_algebra: ModuleType, kv_length: int) -> None:
        for ends in BANDS:
            band, rows = band_algebra.Band(*ends), table(ends, kv_length)
            for (q_begin, q_end), (k_begin, k_end) in product(SPANS, SPANS):
                tile = [seen for row in rows[q_begin:q_end] for seen in row[k_begin:k_end]]
                expected = TileKind.EMPTY
                if any(tile):
                    expected = TileKind.FULL if all(tile) else TileKind.PARTIAL
                where = (q_begin, q_end, k_begin, k_end, kv_length)
                assert band_algebra.band_tile_kind(band, *where) == expected, (ends, where)

    def test_tile_beyond_the_keys_is_partial(self, band_algebra: ModuleType) -> None:
        full = band_algebra.Band(UNBOUNDED, UNBOUNDED, 0)
        assert band_algebra.band_tile_kind(full, 0, 8, 8, 16, 15) == TileKind.PARTIAL
        assert band_algebra.band_tile_kind(full, 0, 8, 8, 16, 16) == TileKind.FULL
        assert band_algebra.band_tile_kind(full, 0, 8, 16, 24, 16) == TileKind.EMPTY

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_range_ends_are_exact_at_any_magnitude(
        self, band_algebra: ModuleType, data: st.DataObject
    ) -> None:
        """Sums of three numbers near 2**30 do not fit 32 bits; no brute force could find that."""
        near = st.one_of(st.integers(0, 300), st.integers(UNBOUNDED - 300, UNBOUNDED))
        left, right, length = (data.draw(near) for _ in range(3))
        offset = data.draw(near) * data.draw(st.sampled_from((-1, 1)))
        begin = data.draw(near)
        end = begin + data.draw(st.integers(1, 150))
        assume(end <= UNBOUNDED)
        band = band_algebra.Band(left, right, offset)

        def keys_seen(i: int) -> tuple[int, int]:
            return max(0, i + offset - left), min(length, i + offset + right + 1)

        def queries_seeing(j: int) -> tuple[int, int]:
            return max(0, j - right - offset), min(length, j + left - offset + 1)

        (first, _), (_, last) = keys_seen(begin), keys_seen(end - 1)
        expected = (first, last) if first < last else (0, 0)
        assert band_algebra.band_kv_range(band, begin, end, length) == expected
        (_, last), (first, _) = keys_seen(begin), keys_seen(end - 1)
        expected = (first, last) if first < last else (0, 0)
        assert band_algebra.band_full_kv_range(band, begin, end, length) == expected
        (first, _), (_, last) = queries_seeing(begin), queries_seeing(end - 1)
        expected = (first, last) if first < last else (0, 0)
        assert band_algebra.band_q_range(band, begin, end, length) == expected


class TestMask:
    def test_equals_the_definition(self) -> None:
        for ends in BANDS:
            expected = torch.tensor(table(ends, kv_length=LENGTH))
            assert torch.equal(Band(*ends).mask(LENGTH, LENGTH), expected), ends

    def test_scalar_definition(self) -> None:
        for ends, i, j in product(BANDS, range(3), range(3)):
            assert band_visible(Band(*ends), i, j, 2) == visible(*ends, i, j, 2)

    @pytest.mark.parametrize(("len_q", "len_k"), [(3, 5), (5, 3), (1, 4), (0, 4), (4, 0)])
    def test_default_offset_lets_the_last_query_meet_the_last_key(
        self, len_q: int, len_k: int
    ) -> None:
        mask = Band.causal().mask(len_q, len_k)
        assert mask.shape == (len_q, len_k)
        expected = torch.ones(len_q, len_k, dtype=torch.bool).tril(len_k - len_q)
        assert torch.equal(mask, expected)

    def test_offset_zero_is_top_left(self) -> None:
        expected = torch.ones(3, 5, dtype=torch.bool).tril()
        assert torch.equal(Band.causal(offset=0).mask(3, 5), expected)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
    def test_kv_lengths_only_clip(self, dtype: torch.dtype) -> None:
        """The diagonal stays that of the full length: padding must not shift a row's mask."""
        band, lengths = Band.window(2, 1), [0, 2, 5, 9]
        mask = band.mask(4, 5, torch.tensor(lengths, dtype=dtype))
        assert mask.shape == (4, 1, 4, 5)
        for row, length in zip(mask[:, 0], lengths, strict=True):
            expected = band.mask(4, 5).clone()
            expected[:, length:] = False
            assert torch.equal(row, expected)

    @pytest.mark.parametrize("kv_lengths", [None, torch.tensor([5, 1, 4])])
    def test_band_offsets_replace_the_offset(self, kv_lengths: torch.Tensor | None) -> None:
        offsets = torch.tensor([0, -3, 7], dtype=torch.int32)
        mask = Band(2, 1, offset=100).mask(4, 5, kv_lengths, band_offsets=offsets)
        assert mask.shape == (3, 1, 4, 5)
        for b, offset in enumerate(offsets.tolist()):
            lengths = None if kv_lengths is None else kv_lengths[b : b + 1]
            assert torch.equal(mask[b].squeeze(), Band(2, 1, offset).mask(4, 5, lengths).squeeze())

    def test_large_band_offsets_do_not_wrap(self) -> None:
        offsets = torch.tensor([UNBOUNDED, -UNBOUNDED], dtype=torch.int32)
        mask = Band().mask(2, 2, band_offsets=offsets)
        assert mask[:, 0].tolist() == [[[True, True], [False, True]], [[True, False], [True, True]]]

    def test_diagonal(self) -> None:
        assert Band.causal().diagonal(2, 5).tolist() == [[3], [4]]
        offsets = torch.tensor([1, -1])
        assert Band().diagonal(2, 5, band_offsets=offsets).tolist() == [[[[1], [2]]], [[[-1], [0]]]]

    def test_device(self) -> None:
        assert Band().mask(2, 3, device="meta").device.type == "meta"
        lengths = torch.empty(2, dtype=torch.int32, device="meta")
        assert Band().mask(2, 3, lengths).device.type == "meta"
        assert Band().mask(2, 3, band_offsets=lengths).device.type == "meta"


class TestBand:
    def test_named_bands(self) -> None:
        assert Band.full() == Band() == Band(UNBOUNDED, UNBOUNDED, None)
        assert Band.causal() == Band(UNBOUNDED, 0)
        assert Band.causal(3) == Band(UNBOUNDED, 0, 3)
        assert Band.window(4, None, offset=-1) == Band(4, UNBOUNDED, -1)
        assert Band.window(None, 2) == Band(UNBOUNDED, 2)
        assert Band.sliding(4, offset=2) == Band(3, 0, 2)
        assert Band.sliding(4).mask(9, 9).sum(dim=1).max() == 4

    def test_is_full(self) -> None:
        assert Band().is_full and Band(offset=7).is_full
        assert not Band(left=UNBOUNDED - 1).is_full
        assert not Band.causal().is_full

    def test_resolve(self) -> None:
        assert Band(3, 4).resolve(5, 9) == Band(3, 4, 4)
        assert Band(3, 4, 1).resolve(5, 9) == Band(3, 4, 1)

    def test_is_a_value(self) -> None:
        assert {Band.causal(): 1}[Band(UNBOUNDED, 0)] == 1
        with pytest.raises(AttributeError):
            Band().left = 3  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("band", "text"),
        [
            (Band(), "full"),
            (Band(offset=3), "full"),
            (Band.causal(), "causal"),
            (Band.causal(0), "causal(offset=0)"),
            (Band.window(255, 0), "window(255, 0)"),
            (Band.window(None, 3, -2), "window(None, 3, offset=-2)"),
            (Band.window(3, None), "window(3, None)"),
        ],
    )
    def test_text(self, band: Band, text: str) -> None:
        assert str(band) == text

    @pytest.mark.parametrize("name", ["left", "right", "offset"])
    @pytest.mark.parametrize("value", [True, 1.0, "1", torch.tensor(1)])
    def test_refuses_what_is_no_int(self, name: str, value: Any) -> None:
        with pytest.raises(TypeError, match=f"^{name}: must be an int, got "):
            Band(**{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("left", -1),
            ("right", -1),
            ("left", UNBOUNDED + 1),
            ("right", UNBOUNDED + 1),
            ("offset", UNBOUNDED + 1),
            ("offset", -UNBOUNDED - 1),
        ],
    )
    def test_refuses_what_is_out_of_range(self, name: str, value: int) -> None:
        with pytest.raises(ValueError, match=rf"^{name}: must be in \[.*\], got {value}$"):
            Band(**{name: value})

    @pytest.mark.parametrize("end", ["left", "right"])
    def test_refuses_none_where_window_is_meant(self, end: str) -> None:
        with pytest.raises(TypeError, match=f"^{end}: "):
            Band(**{end: None})  # type: ignore[arg-type]

    def test_sliding_refuses_no_token(self) -> None:
        with pytest.raises(ValueError, match="^tokens: must be in .*, got 0$"):
            Band.sliding(0)
        with pytest.raises(TypeError, match="^tokens: "):
            Band.sliding(True)

    def test_tile_algebra_refuses_an_open_offset(self) -> None:
        with pytest.raises(ValueError, match="^band: its offset must be a number here"):
            band_kv_range(Band.causal(), 0, 4, 8)
