"""The host's part of the launches of csrc/cuda/sm80: grids, shared memory, order, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from cuda.emulate import ROOM

DIMS = (32, 64, 96, 128, 192, 256)
SHARED_BYTES_OF_SM_86 = 99 * 1024


def problem(**changed: Any) -> dict[str, Any]:
    """Keywords of a problem whose tensors lie at made-up addresses."""
    fields: dict[str, Any] = {
        "dtype": "bfloat16",
        "batch": 2,
        "heads_q": 6,
        "heads_kv": 2,
        "len_q": 300,
        "len_k": 500,
        "head_dim": 64,
        "value_dim": 64,
        "left": 1 << 30,
        "right": 0,
    }
    fields |= changed
    row = fields["head_dim"]
    for name in ("query", "key", "value", "out", "grad_out"):
        fields.setdefault(name, (1 << 12, 500 * 6 * row, 500 * row, row))
    for name in ("grad_query", "grad_key", "grad_value"):
        fields.setdefault(name, (1 << 12, 500 * 6 * row, 500 * row, row))
    return fields


@pytest.mark.parametrize("dim", DIMS)
def test_every_kernel_fits_the_smallest_gpu(dim):
    plans = [ROOM.module.plan_forward(**problem(head_dim=dim, value_dim=dim))]
    plans.append(ROOM.module.plan_backward(**problem(head_dim=dim, value_dim=dim)))
    for plan in plans:
        assert plan["dim"] == dim
        for _, blocks, threads, shared_bytes in plan["launches"]:
            assert blocks > 0 and threads in (128, 256)
            assert shared_bytes <= SHARED_BYTES_OF_SM_86


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "tile"), [(1, 1, 32), (33, 5, 64), (8, 130, 192)]
)
def test_tiles_are_the_next_larger_ones(head_dim, value_dim, tile):
    assert (
        ROOM.module.plan_forward(**problem(head_dim=head_dim, value_dim=value_dim))["dim"] == tile
    )


def test_grid_covers_all_rows():
    plan = ROOM.module.plan_forward(**problem(len_q=257))
    assert plan["launches"][0][1] == 3 * 2 * 6
    plan = ROOM.module.plan_backward(**problem(len_q=257, len_k=129))
    blocks = {name: count for name, count, *_ in plan["launches"]}
    assert blocks == {"delta": 3 * 12, "query_gradient": 3 * 12, "key_gradient": 2 * 4}
    packed = problem(len_q=0, cu_seqlens_q=4096, cu_seqlens_k=4096, total_q=7)
    assert ROOM.module.plan_forward(**packed)["launches"][0][1] == 3 * 6  # rows behind the last
    for empty in ({"batch": 0}, {"len_q": 0}):
        assert ROOM.module.plan_forward(**problem(**empty))["launches"][0][1] == 0


@pytest.mark.parametrize(
    ("operand", "aligned"),
    [
        ((4096, 64 * 999, 64 * 99, 64), True),
        ((4096 + 8, 64 * 999, 64 * 99, 64), False),
        ((4096, 64 * 999, 64 * 99, 68), False),
        ((4096, 64 * 999, 64 * 99 + 4, 64), False),
        ((4096, 64 * 999 + 1, 64 * 99, 64), False),
    ],
)
def test_alignment_is_seen(operand, aligned):
    for name in ("query", "key", "value", "out"):
        plan = ROOM.module.plan_forward(**problem(**{name: operand}))
        assert plan["aligned_rows"] is aligned
    for name in ("grad_out", "grad_query", "grad_key", "grad_value"):
        plan = ROOM.module.plan_backward(**problem(**{name: operand}))
        assert plan["aligned_rows"] is aligned


def test_strides_of_single_rows_do_not_matter():
    operand = (4096, 3, 5, 64)
    plan = ROOM.module.plan_forward(**problem(batch=1, heads_q=1, heads_kv=1, query=operand))
    assert plan["aligned_rows"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": "float32"}, "bf16 and fp16"),
        ({"bias": 4096}, "no bias"),
        ({"heads_q": 5}, "5 query heads do not divide into 2"),
        ({"heads_kv": 0}, "0 key/value heads"),
        ({"head_dim": 257}, "from 1 to 256, got 257 and 64"),
        ({"value_dim": 300}, "from 1 to 256, got 64 and 300"),
        ({"head_dim": 0}, "from 1 to 256"),
        ({"len_k": (1 << 30) + 1}, "up to 2.30"),
        ({"len_q": 1 << 30, "batch": 1 << 10}, "too many blocks"),
    ],
)
def test_refusals(changed, message):
    for plan in (ROOM.module.plan_forward, ROOM.module.plan_backward):
        with pytest.raises(ValueError, match=message):
            plan(**problem(**changed))


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize(
    ("blocks", "heads", "section"), [(5, 12, 4), (3, 7, 3), (1, 1, 1), (4, 6, 9)]
)
def test_order_visits_every_tile_once(blocks, heads, section, last_first):
    tiles = ROOM.module.tile_order(blocks, heads, section, last_first)
    assert sorted(tiles) == [(block, head) for block in range(blocks) for head in range(heads)]
    for start in range(0, len(tiles), blocks * section):
        part = tiles[start : start + blocks * section]
        heads_of_part = {head for _, head in part}
        assert len(heads_of_part) <= section and len(part) == blocks * len(heads_of_part)
        steps = [block for block, _ in part]
        assert steps == sorted(steps, reverse=last_first)


def test_heads_share_the_cache():
    side_by_side = ROOM.module.heads_side_by_side
    assert side_by_side(64, 8, 4 << 20) == 32  # four key/value heads of 4 MB, 8 query heads each
    assert side_by_side(64, 8, 1 << 30) == 8
    assert side_by_side(64, 8, 0) == 64
    assert side_by_side(0, 1, 100) == 1
