"""The host's part of the launches of csrc/cuda/additive: grids, workspace, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from cuda.additive_emulation import ROOM

WARPS = 8


def problem(**changed: Any) -> dict[str, Any]:
    """Keywords of a problem whose tensors lie at made-up addresses."""
    fields: dict[str, Any] = {
        "dtype": "bfloat16",
        "batch": 2,
        "heads_q": 3,
        "heads_kv": 3,
        "len_q": 130,
        "len_k": 200,
        "head_dim": 50,
        "value_dim": 40,
        "v": 4096,
        "grad_v": 4096,
    }
    operand = (1 << 12, 200 * 3 * 52, 200 * 52, 52)
    for name in ("query", "key", "value", "out", "grad_out"):
        fields[name] = operand
    for name in ("grad_query", "grad_key", "grad_value"):
        fields[name] = operand
    return fields | changed


def blocks(**changed: Any) -> dict[str, int]:
    plans = [ROOM.module.plan_forward(0, **problem(**changed))]
    plans.append(ROOM.module.plan_backward(0, **problem(**changed)))
    launches = [launch for plan in plans for launch in plan["launches"]]
    assert all((threads, shared) == (256, 0) for _, _, threads, shared in launches)
    return {name: count for name, count, *_ in launches}


def test_grid_covers_all_rows():
    assert blocks() == {
        "forward": 3 * 6,
        "delta": -(-130 * 6 // 8),
        "query_gradient": 3 * 6,
        "v_gradient": 2 * 3,
        "key_gradient": 4 * 6,
    }
    without_keys = blocks(len_k=0)
    assert without_keys["key_gradient"] == 0 and without_keys["query_gradient"] == 3 * 6


def test_without_rows_v_still_gets_its_zeros():
    for empty in ({"batch": 0}, {"len_q": 0}):
        found = blocks(**empty)
        assert found["v_gradient"] == 2 * 3
        assert found["forward"] == found["delta"] == found["query_gradient"] == 0


def lines(floats: int) -> int:
    return -(-floats * 4 // 256) * 256


def test_workspace_holds_sums_that_wait_for_further_tiles():
    forward, backward = (
        lambda **changed: ROOM.module.plan_forward(0, **problem(**changed))["workspace_bytes"],
        lambda **changed: ROOM.module.plan_backward(0, **problem(**changed))["workspace_bytes"],
    )
    assert forward() == lines(6 * 130 * 40)
    assert forward(len_k=64) == forward(dtype="float32") == 0
    statistics = lines(6 * 130) + lines(6 * 3 * WARPS * 52)
    assert backward() == statistics + lines(6 * 130 * 52) + lines(6 * 200 * 52) + lines(
        6 * 200 * 40
    )
    assert backward(dtype="float32") == statistics
    assert backward(len_k=64, grad_key=(0, 0, 0, 0)) == statistics
    assert backward(grad_query=(0, 0, 0, 0), grad_key=(0, 0, 0, 0)) == lines(6 * 130)


@pytest.mark.parametrize(
    ("operand", "aligned"),
    [
        ((4096, 999 * 4, 99 * 4, 52), True),
        ((4096 + 4, 999 * 4, 99 * 4, 52), False),
        ((4096, 999 * 4, 99 * 4, 50), False),
        ((4096, 999 * 4, 99 * 4 + 2, 52), False),
        ((4096, 999 * 4 + 1, 99 * 4, 52), False),
    ],
)
def test_alignment_is_seen(operand, aligned):
    for name in ("query", "key", "value", "out"):
        plan = ROOM.module.plan_forward(0, **problem(**{name: operand}))
        assert plan["aligned"] is aligned
    for name in ("out", "grad_out", "grad_query", "grad_key", "grad_value"):
        plan = ROOM.module.plan_backward(0, **problem(**{name: operand}))
        assert plan["aligned"] is aligned


def test_four_elements_of_fp32_need_more():
    operand = (4096 + 8, 400, 400, 52)
    assert ROOM.module.plan_forward(0, **problem(query=operand))["aligned"]
    assert not ROOM.module.plan_forward(0, **problem(query=operand, dtype="float32"))["aligned"]


def test_strides_of_single_rows_do_not_matter():
    operand = (4096, 3, 5, 52)
    plan = ROOM.module.plan_forward(0, **problem(batch=1, heads_q=1, heads_kv=1, query=operand))
    assert plan["aligned"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": "float64"}, "fp32, bf16 and fp16"),
        ({"head_dim": 0}, "from 1 to 2.30, got 0 and 40"),
        ({"value_dim": 0}, "from 1 to 2.30, got 50 and 0"),
        ({"len_k": (1 << 30) + 1}, "lengths go up to 2.30"),
        ({"len_q": 1 << 30, "batch": 1 << 8}, "too many rows"),
        ({"head_dim": 1 << 30, "heads_q": 1 << 10, "batch": 0}, "too many columns"),
    ],
)
def test_refusals(changed, message):
    for plan in (ROOM.module.plan_forward, ROOM.module.plan_backward):
        with pytest.raises(ValueError, match=message):
            plan(0, **problem(**changed))
