"""The CPU kernels of local attention on every instruction set and in every dtype."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from local_case import LocalCase
from local_cases import CASES, DTYPES, random_case

from fused_attention import _ext, local_attention

ISAS = [isa for isa in _ext.available_cpu_isas() if isa in ("portable", "avx2", "avx512")]
DETERMINISTIC = (
    LocalCase("many_rows", 1, 3, 3, len_q=500, len_k=500, head_dim=40, sigma="query", width=10),
    LocalCase("grouped", 2, 6, 2, len_q=200, len_k=700, sigma="head", mode="log_bias", width=40),
    LocalCase("whole", 1, 2, 1, len_q=150, len_k=300, sigma="all", width=math.inf),
    LocalCase("lengths", 2, len_q=300, len_k=100, key_lengths=(100, 30), dtype=torch.bfloat16),
)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_ext, "cpu_isa", lambda: request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients(case, dtype, isa, poisoned_allocations):
    inputs = case.with_dtype(dtype).make()
    inputs.assert_results(*inputs.run("cpu"), name=f"{isa}: ")


@pytest.mark.parametrize("seed", range(24))
def test_random_problems(seed, isa, poisoned_allocations):
    inputs = random_case(seed, DTYPES[seed % 4]).make(seed)
    inputs.assert_results(*inputs.run("cpu"), name=f"{isa}, {inputs.case}: ")


@pytest.mark.parametrize("isa", [x for x in _ext.available_cpu_isas() if x not in ISAS])
def test_tiers_without_kernels_of_their_own(isa, monkeypatch):
    inputs = CASES[0].make()
    results = []
    for name in (isa, "avx512"):
        monkeypatch.setattr(_ext, "cpu_isa", lambda name=name: name)
        results.append(inputs.run("cpu"))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_an_instruction_set_that_is_not_there(monkeypatch):
    monkeypatch.setattr(_ext, "cpu_isa", lambda: "avx1024")
    with pytest.raises(RuntimeError, match="instruction set 'avx1024' is not available"):
        CASES[0].make().run("cpu")


@pytest.mark.parametrize("order", ["falling", "shuffled"])
@pytest.mark.parametrize("case", [CASES[0], DETERMINISTIC[1], DETERMINISTIC[2]], ids=str)
def test_the_order_of_queries_does_not_matter(case, order, isa):
    """Windows are sorted in the kernel: a permutation of rising positions permutes the rows."""
    rising = replace(case, positions="rising", sigma="query", dtype=torch.float64).make()
    count = case.len_q
    rows = torch.arange(count).flip(0) if order == "falling" else torch.randperm(count)
    moved = replace(
        rising,
        query=rising.query[:, :, rows],
        position=rising.position[:, :, rows],
        sigma=rising.sigma[:, :, rows],
    )
    vars(moved)["upstream"] = tuple(grad[:, :, rows] for grad in rising.upstream)
    expected, actual = rising.run("cpu"), moved.run("cpu")
    for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
        per_key = index in (3, 4)
        torch.testing.assert_close(one, other if per_key else other[:, :, rows])


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", DETERMINISTIC, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(case, isa, set_threads):
    inputs = case.make()
    set_threads(1)
    alone = inputs.run("cpu")
    for threads in (2, 2, 3, 16):
        set_threads(threads)
        torch.testing.assert_close(inputs.run("cpu"), alone, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_lies_in_no_window_may_be_anything(dtype, isa):
    """Bit for bit, in keys and values, between windows and beside them."""
    case = LocalCase("nan", batch=1, len_q=24, len_k=400, width=9, sigma="query", dtype=dtype)
    inputs = case.make()
    inputs.position.copy_(torch.tensor([30.0, 33, 90, 260, 377, 378]).repeat(2, 4)[None])
    clean = inputs.run("cpu")
    visible = inputs._visible()[0].any((0, 1))
    assert visible.any() and not visible.all()
    for tensor in (inputs.key, inputs.value):
        tensor[:, :, ~visible] = torch.nan
    torch.testing.assert_close(inputs.run("cpu"), clean, rtol=0, atol=0)


KEYS_IN_PAGES = """
import ctypes, mmap, sys
import torch
from fused_attention import _ext, local_attention
protect = ctypes.CDLL(None).mprotect
PAGE, LEN, DIM = mmap.PAGESIZE, 150, 40
dtype, tiers, surprise = getattr(torch, sys.argv[1]), sys.argv[2].split(","), float(sys.argv[3])
# The first two windows are [0, 0], of which the sequence's begin left one key, and [2, 10].
position = torch.tensor([-3.5, 6.1, 100.0, 101.9, 99.0, 60.0, -40.0, 149.0])
window = (torch.arange(LEN) - position[:, None].floor()).abs() <= 4

def pages():
    # A key in each page; those in no window may not be touched.
    memory = mmap.mmap(-1, LEN * PAGE)
    rows = torch.frombuffer(memory, dtype=dtype).view(1, 1, LEN, -1)[..., :DIM]
    rows.copy_(torch.randn(rows.shape))
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for key in (~window.any(0)).nonzero():
        address = ctypes.c_void_p(start + int(key) * PAGE)
        assert protect(address, ctypes.c_size_t(PAGE), 0) == 0
    return rows.requires_grad_()

_ext.available_cpu_isas()
position[-1] += surprise
for tier in tiers:
    _ext.cpu_isa = lambda: tier
    for mode in ("luong", "log_bias"):
        query = torch.randn(1, 1, 8, DIM).to(dtype).requires_grad_()
        leaves = [query, pages(), pages(), position.view(1, 1, 8).requires_grad_()]
        out = local_attention(*leaves, width=4, mode=mode, backend="cpu")
        torch.autograd.grad(out.square().sum(), leaves)
        print("ok")
"""


def run_on_pages(dtype: str, surprise: float) -> subprocess.CompletedProcess[str]:
    python = Path(__file__).resolve().parents[2] / "python"
    return subprocess.run(
        [sys.executable, "-c", KEYS_IN_PAGES, dtype, ",".join(ISAS), str(surprise)],
        env={**os.environ, "PYTHONPATH": str(python)},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_in_no_window_are_never_loaded(dtype):
    result = run_on_pages(dtype, 0.0)
    assert result.stdout.split().count("ok") == 2 * len(ISAS), result.stderr


def test_a_key_that_may_not_be_loaded_is_noticed():
    assert run_on_pages("float32", -9.0).returncode == -signal.SIGSEGV


WRONG = {
    "width": {"width": 5.0},
    "sigma": {"sigma": 1.02},
    "position": {"position": 0.02},
    "mode": {"mode": "log_bias"},
    "scale": {"scale": 0.26},
    "length": {"key_lengths": torch.tensor([50, 29])},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_results_of_a_slightly_different_problem_are_noticed(wrong):
    """What a kernel with a bug would give is far outside of the budget."""
    inputs = LocalCase("bug", sigma="query", key_lengths=(50, 30)).make()
    inputs.assert_results(*inputs.run("cpu"))
    changes = dict(WRONG[wrong])
    options = {**inputs.options, "sigma": inputs.sigma * changes.pop("sigma", 1.0)}
    position = inputs.position + changes.pop("position", 0.0)
    operands = (inputs.query, inputs.key, inputs.value.nan_to_num(), position)
    out, _ = local_attention(*operands, return_lse=True, **{**options, **changes})
    with pytest.raises(AssertionError, match="out: (error|.*positions)"):
        inputs.assert_results(out, inputs.plain(torch.float64)[1].float())


@pytest.mark.parametrize("index", [2, 3, 5, 6])
def test_gradients_without_a_part_of_that_of_lse_are_noticed(index):
    """All but the value's have one in log_bias, in luong those of query and key."""
    for mode in ("luong", "log_bias"):
        inputs = LocalCase("bug", sigma="query", mode=mode, width=3.0).make()
        results = list(inputs.run("cpu"))
        inputs.assert_results(*results)
        vars(inputs)["upstream"] = (inputs.upstream[0], inputs.upstream[1] * 0.99)
        others = inputs.run("cpu")
        del vars(inputs)["upstream"]
        if torch.equal(others[index], results[index]):
            assert mode == "luong" and index > 3
            continue
        results[index] = others[index]
        with pytest.raises(AssertionError, match="exceeds its budget"):
            inputs.assert_results(*results)
