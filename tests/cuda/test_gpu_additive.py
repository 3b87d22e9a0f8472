"""additive_attention by csrc/cuda/additive on a GPU: what its PTX did in the emulator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from additive_case import CASES, AdditiveCase
from torch import Tensor

from fused_attention import Band, _ext, additive_attention

pytestmark = pytest.mark.gpu

BACKEND = "cuda_sm80"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REPEATS = 100
LARGE = (
    AdditiveCase("many_tiles", len_q=300, len_k=700, dim=96, value_dim=80),
    AdditiveCase(
        *("bahdanau", 4, 0, 50, 60),
        dim=1000,
        value_dim=2000,
        v_magnitude=0.03,
    ),
    AdditiveCase("causal", len_q=500, len_k=500, dim=64, value_dim=64, band=Band.causal()),
    AdditiveCase("lengths", batch=5, len_k=400, key_lengths=(0, 400, 1, 64, 65), dim=33),
)


@pytest.fixture(autouse=True, scope="module")
def library() -> None:
    error = _ext.load_error("cuda")
    assert error is None, error


def run(case: AdditiveCase) -> tuple[Tensor, ...]:
    return case.make(device="cuda").run(BACKEND)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", (*CASES, *LARGE), ids=str)
def test_within_budget(case, dtype):
    inputs = case.with_dtype(dtype).make(device="cuda")
    inputs.assert_results(*inputs.run(BACKEND))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeated_calls_are_bit_equal(dtype):
    case = replace(LARGE[0], dtype=dtype)
    first = run(case)
    for _ in range(REPEATS):
        for again, before in zip(run(case), first, strict=True):
            assert torch.equal(again, before)


def test_it_is_the_backend_that_a_call_gets():
    inputs = LARGE[0].make(device="cuda")
    operands = (inputs.query, inputs.key, inputs.value, inputs.v)
    assert torch.equal(
        additive_attention(*operands), additive_attention(*operands, backend=BACKEND)
    )


def test_works_on_the_current_stream():
    expected = run(LARGE[0])
    with torch.cuda.stream(torch.cuda.Stream()):
        for mine, other in zip(run(LARGE[0]), expected, strict=True):
            assert torch.equal(mine, other)


def test_nothing_of_the_size_of_all_sums_is_stored():
    """Memory beyond inputs and results, against the 4 B H Lq Lk D bytes of the formula."""
    case = AdditiveCase("large", batch=1, heads=1, len_q=1024, len_k=1024, dim=256, value_dim=256)
    inputs = case.make(device="cuda")
    operands = (inputs.query, inputs.key, inputs.value, inputs.v)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    leaves = [x.detach().requires_grad_() for x in operands]
    out = additive_attention(*leaves, backend=BACKEND)
    torch.autograd.grad(out.sum(), leaves)
    grown = torch.cuda.max_memory_allocated() - before
    assert grown < 4 * 1024 * 1024 * 256 / 50
