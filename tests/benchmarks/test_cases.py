"""The benchmark's cases: complete, unique and reproducible."""

from __future__ import annotations

import pytest
import torch

from fused_attention import Band
from fused_attention.benchmarks import cases
from fused_attention.benchmarks.cases import Case, case_set, memory_cases, square


@pytest.mark.parametrize("name", cases.MEMORY_LADDERS)
def test_set_has_what_it_promises(name: str) -> None:
    chosen = case_set(name)
    names = [case.name for case in chosen]
    assert len(set(names)) == len(names)
    assert {"fp32", "bf16"} <= {case.dtype for case in chosen}
    window = Band.sliding(256).resolve(4096, 4096)
    assert any(c.len_q == 4096 and c.band.resolve(4096, 4096) == window for c in chosen)
    assert any(c.heads_q > c.heads_kv and c.len_q > 1 for c in chosen), "grouped heads"
    assert any(c.len_q == 1 and not c.backward for c in chosen), "decoding"
    assert any(c.backward for c in chosen)
    assert (1, 8, 1024, 64) in [(c.batch, c.heads_q, c.len_q, c.head_dim) for c in chosen]


@pytest.mark.parametrize("name", cases.MEMORY_LADDERS)
def test_memory_is_measured_up_to_16384(name: str) -> None:
    for backward in (False, True):
        lengths = [c.len_q for c in memory_cases(name) if c.backward == backward]
        assert lengths == sorted(lengths)
        assert 16384 in lengths


def test_dtypes_replace_those_of_the_set() -> None:
    chosen = case_set("cpu", ["fp64"])
    assert {case.dtype for case in chosen} == {"fp64"}
    assert len(chosen) == len(case_set("cpu")) // 3
    assert len({case.name for case in chosen}) == len(chosen)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        ValueError, match="set: must be one of demo, cpu, cuda, cuda-quick, got 'gpu'"
    ):
        case_set("gpu")
    with pytest.raises(ValueError, match="dtype: must be one of .*, got 'fp8'"):
        case_set("demo", ["fp8"])


@pytest.mark.parametrize("case", case_set("demo"), ids=lambda case: case.name)
def test_case_survives_json(case: Case) -> None:
    assert Case.from_dict(case.as_dict()) == case


def test_inputs_have_the_case_s_shapes_and_repeat() -> None:
    case = Case(2, 6, 2, 5, 9, 16, band=Band.causal(), dtype="bf16")
    inputs = case.make_inputs()
    assert inputs.query.shape == inputs.grad_out.shape == (2, 6, 5, 16)
    assert inputs.key.shape == inputs.value.shape == (2, 2, 9, 16)
    assert {t.dtype for t in inputs[:4]} == {torch.bfloat16}
    assert all(t.requires_grad for t in inputs[:3])
    assert inputs.mask is not None
    assert torch.equal(inputs.mask, Band.causal().mask(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(inputs, case.make_inputs(), strict=True))


def test_mask_is_made_only_where_something_is_hidden() -> None:
    assert square(1, 1, 8, 4).make_inputs().mask is None
    assert Case(1, 1, 1, 1, 8, 4, band=Band.causal()).make_inputs().mask is None  # decoding
    assert square(1, 1, 8, 4, band=Band.window(7, 7)).hides_nothing


def test_io_bytes_count_query_key_value_and_out() -> None:
    case = Case(3, 4, 2, 5, 7, 16, dtype="bf16")
    assert case.io_bytes == 2 * 3 * 16 * (2 * 4 * 5 + 2 * 2 * 7)


def test_a_decoding_case_is_what_was_asked_for() -> None:
    case = cases.decoding(3, 8, 2, 500, 96, len_q=4)
    assert case == Case(3, 8, 2, 4, 500, 96, band=Band.causal(), backward=False)
