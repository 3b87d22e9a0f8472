"""The CPU kernels on 1, 2 and many threads, from several Python threads, and after a fork."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from attention_case import AttentionCase
from torch.utils.data import DataLoader, Dataset

from fused_attention import Band, attention, attention_varlen

CASES = (
    AttentionCase("one_head", batch=1, heads_q=1, len_q=500, len_k=700, head_dim=40),
    AttentionCase("few_heads", batch=1, heads_q=3, len_q=300, head_dim=64, band=Band.causal()),
    AttentionCase("grouped", batch=2, heads_q=6, heads_kv=2, len_q=200, band=Band.window(70, 9)),
    AttentionCase("dead_rows", batch=1, heads_q=2, len_q=400, len_k=150, band=Band.causal()),
    AttentionCase("dropout", batch=1, heads_q=2, len_q=200, dropout_p=0.2, head_dim=48),
    AttentionCase("bias", batch=2, heads_q=2, len_q=150, bias="1hqk", dtype=torch.bfloat16),
    AttentionCase("packed", heads_q=4, heads_kv=2, seq_lens_q=(200, 0, 3, 170), trailing=3),
    # Whole heads on two threads, and sums of gradients that no thread keeps to itself.
    AttentionCase("many_heads", batch=6, heads_q=16, heads_kv=8, len_q=70, kv_lengths=(70, 3) * 3),
    AttentionCase(
        "many_packed_heads", heads_q=40, seq_lens_q=(50, 0, 3), seq_lens_k=(20, 30, 5), trailing=2
    ),
    AttentionCase("large_sums", batch=1, heads_q=1, len_q=20, len_k=1100, head_dim=128),
)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def forward_and_gradients(case: AttentionCase) -> list[torch.Tensor]:
    inputs = case.make(0)
    leaves = inputs.require_gradients()
    function = attention_varlen if case.packed else attention
    operands = (inputs.query, inputs.key, inputs.value)
    results = function(*operands, return_lse=True, backend="cpu", **inputs.options)
    upstream = inputs.random_output_gradients()
    return [*results, *torch.autograd.grad(results, list(leaves.values()), upstream)]


def assert_bit_equal(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(case, fused_backend, set_threads):
    set_threads(1)
    alone = forward_and_gradients(case)
    for threads in (2, 3, 16):
        set_threads(threads)
        assert_bit_equal(forward_and_gradients(case), alone)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_repeated_calls_are_bit_equal(case, fused_backend, set_threads):
    set_threads(4)
    first = forward_and_gradients(case)
    for _ in range(10):
        assert_bit_equal(forward_and_gradients(case), first)


def test_calls_from_several_python_threads_at_once(fused_backend):
    expected = [forward_and_gradients(case) for case in CASES]
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            (i, pool.submit(forward_and_gradients, CASES[i])) for i in list(range(len(CASES))) * 6
        ]
        for i, job in jobs:
            assert_bit_equal(job.result(timeout=120), expected[i])


class _AttentionDataset(Dataset):
    """Attention inside a data loader's worker process."""

    def __len__(self) -> int:
        return len(CASES)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [x.detach() for x in forward_and_gradients(CASES[index])]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_after_the_parent_used_its_threads_a_worker_process_still_works(method, set_threads):
    set_threads(2)
    expected = [forward_and_gradients(case) for case in CASES]
    loader = DataLoader(
        _AttentionDataset(),
        batch_size=None,
        num_workers=2,
        timeout=120,
        multiprocessing_context=method,
    )
    for actual, wanted in zip(loader, expected, strict=True):
        assert_bit_equal(actual, wanted)
