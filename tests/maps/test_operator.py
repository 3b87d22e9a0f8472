"""attention_maps under autograd, autocast, torch.compile and torch's operator checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_case import AttentionCase
from maps_case import MapsInputs
from torch import Tensor

from fused_attention import AttentionMaps, Band, attention, attention_maps
from fused_attention.maps.functional import _maps_call
from fused_attention.maps.operator import maps_op
from fused_attention.prepare import prepare

CASES = (
    AttentionCase("dense", 2, 4, 2, len_q=9, len_k=20, band=Band.causal(), kv_lengths=(20, 3)),
    AttentionCase("bias", 2, 2, len_q=7, len_k=5, bias="1hqk", alibi="h", dtype=torch.float64),
    AttentionCase("packed", heads_q=2, seq_lens_q=(5, 0, 9), seq_lens_k=(4, 2, 11), trailing=2),
)
ALL = {"rows": [4, 1], "heads": [1], "column_mean": True, "column_mass": True, "entropy": True}
ALL |= {"argmax": True, "top_k": 2}


def assert_equal(found: AttentionMaps, expected: AttentionMaps) -> None:
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual is None) == (wanted is None)
        if actual is not None and wanted is not None:
            torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_operator_is_a_good_one(case: AttentionCase, backend: str) -> None:
    """Its schema, its fake and what it does under AOT dispatch, dynamic shapes too."""
    maps = MapsInputs(case.make())
    inputs = maps.inputs
    _, attended = prepare(inputs.query, inputs.key, inputs.key, **maps.options)
    call = _maps_call(attended, maps.lse, [3, 0], [1])
    call = call._replace(column_mass=True, entropy=True, argmax=True, top_k=2)
    torch.library.opcheck(maps_op, (*call, backend))
    nothing = call._replace(rows=None, column_mass=False, entropy=False, top_k=0)
    torch.library.opcheck(maps_op, (*nothing, backend))


@pytest.mark.parametrize(("case", "dynamic"), [(CASES[0], False), (CASES[2], True)], ids=str)
def test_compiles_in_one_graph(case: AttentionCase, dynamic: bool) -> None:
    maps = MapsInputs(case.make())
    inputs = maps.inputs

    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def compiled(query: Tensor, key: Tensor, lse: Tensor, options: dict[str, Any]) -> AttentionMaps:
        return attention_maps(query, key, lse, **options, **ALL)

    found = compiled(inputs.query, inputs.key, maps.lse, maps.options)
    torch._dynamo.reset()
    assert_equal(found, maps.run(None, **ALL))


def test_results_are_detached() -> None:
    query = torch.randn(1, 2, 6, 8, requires_grad=True)
    out, lse = attention(query, query, query, return_lse=True)
    found = attention_maps(query, query, lse, **ALL)
    assert not any(result.requires_grad for result in found if result is not None)
    (out.sum() + lse.sum()).backward()
    assert query.grad is not None


def test_autocast_casts_as_attention_does() -> None:
    query, key, value = (torch.randn(1, 2, 40, 16) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, lse = attention(query, key, value, return_lse=True)
        found = attention_maps(query, key, lse, rows=[0, 39])
    half = [x.bfloat16() for x in (query, key)]
    assert_equal(found, attention_maps(*half, lse, rows=[0, 39]))
    assert found.weights is not None
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(1, 2, 2), rtol=1e-4, atol=0)


def test_rows_and_heads_of_any_integer_type() -> None:
    maps = MapsInputs(CASES[0].make())
    expected = maps.run("cpu", rows=[4, 1, 1], heads=[3, 0])
    for dtype in (torch.int64, torch.int32, torch.uint8):
        rows, heads = torch.tensor([4, 1, 1], dtype=dtype), torch.tensor([3, 0], dtype=dtype)
        assert_equal(maps.run("cpu", rows=rows, heads=heads), expected)
        strided = torch.stack([rows, rows * 0], 1)[:, 0]
        assert_equal(maps.run("cpu", rows=strided, heads=heads), expected)
    assert_equal(maps.run("cpu", rows=(4, 1, 1), heads=range(3, -1, -3)), expected)


def test_no_rows_and_no_heads() -> None:
    maps = MapsInputs(CASES[0].make())
    none = maps.run("cpu", rows=[])
    assert none.weights is not None and none.weights.shape == (2, 2, 0, 20)
    assert all(x.shape[1] == 0 for x in maps.run("cpu", heads=[]) if x is not None)


def test_an_lse_of_any_strides() -> None:
    maps = MapsInputs(CASES[0].make())
    expected = maps.run("cpu")
    maps.lse = maps.lse.transpose(1, 2).contiguous().transpose(1, 2)
    assert_equal(maps.run("cpu"), expected)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_do_not_depend_on_threads_nor_on_the_run(
    set_threads: Callable[[int], None],
) -> None:
    cases = (
        AttentionCase("dense", 2, 3, 1, len_q=300, len_k=400, head_dim=40, band=Band.causal()),
        AttentionCase("packed", heads_q=2, seq_lens_q=(200, 0, 3, 170), trailing=3),
    )
    for case in cases:
        maps = MapsInputs(case.make())
        set_threads(1)
        alone = maps.run("cpu")
        for threads in (2, 3, 16, 16):
            set_threads(threads)
            assert_equal(maps.run("cpu"), alone)
