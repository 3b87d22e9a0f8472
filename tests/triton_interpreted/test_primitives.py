"""What the Triton kernels share, against its definition in Python: band, Philox, tanh, softmax."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import triton
import triton.language as tl

from fused_attention import masks, philox
from fused_attention.masks import UNBOUNDED, Band
from fused_attention.triton_kernels import band, scores, softmax
from fused_attention.triton_kernels.philox import dropout_keep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ENDS = (0, 1, 2, 5, UNBOUNDED)
OFFSETS = (-UNBOUNDED, -6, -3, -1, 0, 1, 2, 4, 7, UNBOUNDED)
SPANS = [(begin, end) for begin in range(5) for end in range(begin, 5)]
NEAR_UNBOUNDED = [
    (UNBOUNDED - 7, UNBOUNDED, offset, begin, begin + 90, UNBOUNDED - 3)
    for offset in (UNBOUNDED - 2, -UNBOUNDED + 5)
    for begin in (0, 100, UNBOUNDED - 100)
]
TABLE = [
    (*ends, *span, length)
    for ends, span, length in product(product(ENDS, ENDS, OFFSETS), SPANS, range(5))
] + NEAR_UNBOUNDED
RANGES = ("band_kv_range", "band_full_kv_range", "band_q_range")
band_kv_range, band_full_kv_range = band.band_kv_range, band.band_full_kv_range
band_q_range, band_full_q_range = band.band_q_range, band.band_full_q_range
band_visible = band.band_visible


@triton.jit
def range_kernel(table, found, count, WHICH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = row < count
    left = tl.load(table + row * 6, mask=exists, other=0)
    right = tl.load(table + row * 6 + 1, mask=exists, other=0)
    offset = tl.load(table + row * 6 + 2, mask=exists, other=0)
    begin = tl.load(table + row * 6 + 3, mask=exists, other=0)
    end = tl.load(table + row * 6 + 4, mask=exists, other=0)
    length = tl.load(table + row * 6 + 5, mask=exists, other=0)
    if WHICH == 0:
        first, last = band_kv_range(left, right, offset, begin, end, length)
    elif WHICH == 1:
        first, last = band_full_kv_range(left, right, offset, begin, end, length)
    elif WHICH == 2:
        first, last = band_q_range(left, right, offset, begin, end, length)
    else:
        first, last = band_full_q_range(left, right, offset, begin, end, length)
    tl.store(found + row * 2, first, mask=exists)
    tl.store(found + row * 2 + 1, last, mask=exists)


def ranges(which: int) -> list[tuple[int, int]]:
    """What the kernel says of every row of TABLE."""
    table = torch.tensor(TABLE, dtype=torch.int32, device=DEVICE)
    found = torch.empty(len(TABLE), 2, dtype=torch.int32, device=DEVICE)
    block = 4096
    grid = (triton.cdiv(len(TABLE), block),)
    range_kernel[grid](table, found, len(TABLE), WHICH=which, BLOCK=block)
    return [(first, last) for first, last in found.tolist()]


@pytest.mark.parametrize("name", RANGES)
def test_ranges_of_the_band(name):
    """The functions of masks.py, which test_masks.py holds against the definition."""
    of_python = getattr(masks, name)
    expected = [of_python(Band(*row[:3]), *row[3:]) for row in TABLE]
    assert ranges(RANGES.index(name)) == expected


def test_queries_that_see_all_of_the_keys():
    for row, found in zip(TABLE, ranges(3), strict=True):
        ends, (k_begin, k_end), len_q = Band(*row[:3]), row[3:5], row[5]
        if len_q > 4:
            continue
        see_all = [
            q
            for q in range(len_q)
            if k_begin < k_end
            and all(masks.band_visible(ends, q, k, k_end) for k in range(k_begin, k_end))
        ]
        assert list(range(*found)) == see_all, row


@triton.jit
def visible_kernel(found, left, right, offset, q_first, k_first, length, BLOCK: tl.constexpr):
    q_row = q_first + tl.arange(0, BLOCK)
    k_row = k_first + tl.arange(0, BLOCK)
    seen = band_visible(left, right, offset, q_row[:, None], k_row[None, :], length)
    place = tl.arange(0, BLOCK)
    tl.store(found + place[:, None] * BLOCK + place[None, :], seen.to(tl.int8))


@pytest.mark.parametrize(
    ("ends", "first"),
    [((2, 1, 0), 0), ((UNBOUNDED, 0, 3), 0), ((0, UNBOUNDED, -4), 0), ((5, 5, UNBOUNDED), 9)],
)
def test_the_definition(ends, first):
    found = torch.empty(16, 16, dtype=torch.int8, device=DEVICE)
    visible_kernel[(1,)](found, *ends, first, 0, 13, BLOCK=16)
    q_row = torch.arange(first, first + 16)[:, None]
    assert torch.equal(
        found.cpu().bool(), masks.band_visible(Band(*ends), q_row, torch.arange(16), 13)
    )


@triton.jit
def keep_kernel(found, rng_state, stream, q_first, k_first, threshold, BLOCK: tl.constexpr):
    q_row = q_first + tl.arange(0, 16)
    keep = dropout_keep(rng_state, stream, q_row, k_first, threshold, BLOCK)
    place = tl.arange(0, 16)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(found + place, keep.to(tl.int8))


@pytest.mark.parametrize("state", [(0, 0), (0x123456789ABCDEF, 77), (-5, 0xFFFFFFFF), (9, 1 << 40)])
@pytest.mark.parametrize("block", [32, 64])
def test_dropout_bit_for_bit(state, block):
    rng_state = torch.tensor(state, dtype=torch.int64, device=DEVICE)
    dropout_p, batch, heads, first = 0.37, 2, 3, 32
    expected = philox.dropout_keep_mask(rng_state, dropout_p, batch, heads, 21, first + block)
    for b, h in ((0, 0), (1, 2)):
        found = torch.empty(16, block, dtype=torch.int8, device=DEVICE)
        threshold = philox.dropout_threshold(dropout_p)
        keep_kernel[(1,)](found, rng_state, b * heads + h, 5, first, threshold, BLOCK=block)
        assert torch.equal(found.bool(), expected[b, h, 5:, first:])


@triton.jit
def tanh_kernel(x, y, ACCURATE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(y + place, tanh(tl.load(x + place), ACCURATE))


tanh = scores.tanh


@pytest.mark.parametrize(("accurate", "bound"), [(True, 4e-7), (False, 3e-7)])
def test_tanh(accurate, bound):
    """Relative error, or without ACCURATE the absolute one."""
    size = torch.logspace(-30, 1.5, 2047, base=10, dtype=torch.float64).float()
    x = torch.cat([size, -size, torch.tensor([0.0, torch.inf])]).to(DEVICE)
    y = torch.empty_like(x)
    tanh_kernel[(1,)](x, y, ACCURATE=accurate, BLOCK=4096)
    exact = x.double().tanh()
    error = (y - exact).abs() / (exact.abs().clamp_min(1e-30) if accurate else 1.0)
    assert error.max() < bound


@triton.jit
def softmax_kernel(S, sinks, row_max, row_sum, UNIT: tl.constexpr, HAS_SINKS: tl.constexpr):
    rows, columns = tl.arange(0, 4), tl.arange(0, 8)
    top, total = start_rows(sinks, rows, UNIT, HAS_SINKS, 4)
    for tile in range(2):
        values = tl.load(S + rows[:, None] * 16 + tile * 8 + columns[None, :])
        P, top, total, alpha = online_softmax_update(values, top, total, UNIT * LOG2_E)
    inverse, lse = online_softmax_finish(top, total, UNIT)
    tl.store(row_max + rows, lse)
    tl.store(row_sum + rows, inverse)


start_rows, LOG2_E = softmax.start_rows, softmax.LOG2_E
online_softmax_update = softmax.online_softmax_update
online_softmax_finish = softmax.online_softmax_finish


@pytest.mark.parametrize("with_sinks", [False, True])
def test_softmax_of_dead_and_living_rows(with_sinks):
    """Rows: alive, dead, dead in the first tile only, with one key; scores in units of 0.5."""
    S = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    S[1] = S[2, :8] = S[3, 1:] = -torch.inf
    sinks = torch.tensor([0.3, 5.0, -torch.inf, -60.0])
    if not with_sinks:
        sinks = torch.full_like(sinks, -torch.inf)
    lse, inverse = torch.empty(4, device=DEVICE), torch.empty(4, device=DEVICE)
    softmax_kernel[(1,)](
        S.to(DEVICE), sinks.to(DEVICE), lse, inverse, UNIT=0.5, HAS_SINKS=with_sinks
    )
    exact = torch.logsumexp(torch.cat([0.5 * S.double(), sinks[:, None].double()], 1), 1)
    torch.testing.assert_close(lse.cpu().double(), exact, rtol=1e-6, atol=1e-6)
    assert inverse.isfinite().all() and inverse[1].item() == (1.0 if with_sinks else 0.0)
