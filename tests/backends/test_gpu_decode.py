"""Decoding on a GPU: right, repeatable, and in CUDA graphs. Collected only on one."""

from __future__ import annotations

import pytest
import torch
from gpu_run.decoding import assert_step, decodes, decoding_inputs, decoding_step
from places import GPU_PLACES
from torch import Tensor

from fused_attention.decoding import attention_with_kv_cache

pytestmark = pytest.mark.gpu


def step(inputs: dict[str, Tensor], backend: str, **options) -> list[Tensor]:
    """out and lse of one step, as copies."""
    results = attention_with_kv_cache(**inputs, return_lse=True, backend=backend, **options)
    return [result.clone() for result in results]


def assert_bit_equal(actual, expected) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_the_gpu_has_a_backend_that_decodes():
    assert any(decodes(place.backend, "cuda") for place in GPU_PLACES)


@pytest.fixture
def decoder(gpu_backend: str) -> str:
    if not decodes(gpu_backend, "cuda"):
        pytest.skip(f"{gpu_backend} does not decode")
    return gpu_backend


@pytest.mark.parametrize("paged", [False, True])
def test_a_step_within_budget(decoder, paged):
    decoding_step(decoder, "cuda", paged)


@pytest.mark.parametrize("splits", [1, 2, 7, None])
def test_any_number_of_parts_within_budget(decoder, splits):
    shape = {"lengths": (5, 1000, 1999), "capacity": 2048}
    out, _ = step(decoding_inputs("cuda", **shape), decoder, splits=splits)
    assert_step(out, decoding_inputs("cpu", **shape))


@pytest.mark.parametrize("paged", [False, True])
def test_repeated_steps_are_bit_equal(decoder, paged):
    inputs = decoding_inputs("cuda", (5, 1000, 1999), capacity=2048, paged=paged)
    first = step(inputs, decoder)
    for _ in range(30):
        assert_bit_equal(step(inputs, decoder), first)


@pytest.mark.parametrize("paged", [False, True])
def test_steps_in_a_cuda_graph(decoder, paged):
    """One captured step, replayed while the caches grow: the lengths are read on the GPU."""
    inputs = decoding_inputs("cuda", (5, 63, 150), capacity=192, paged=paged)
    eager = {name: tensor.clone() for name, tensor in inputs.items()}
    step({name: tensor.clone() for name, tensor in inputs.items()}, decoder)  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attention_with_kv_cache(**inputs, return_lse=True, backend=decoder)
    for turn in range(4):
        torch.manual_seed(turn)
        for name in ("query", "key", "value"):
            inputs[name].normal_()
            eager[name].copy_(inputs[name])
        graph.replay()
        assert_bit_equal(captured, step(eager, decoder))
        for name in ("key_cache", "value_cache"):
            assert_bit_equal([inputs[name]], [eager[name]])
        for tensors in (inputs, eager):
            tensors["cache_lengths"] += 1


def test_a_row_does_not_depend_on_its_batch_if_so_asked(decoder):
    lengths = (5, 1000, 1999)
    inputs = decoding_inputs("cuda", lengths, capacity=2048)
    together = step(inputs, decoder, batch_invariant=True)
    for row in range(len(lengths)):
        alone = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        results = step(alone, decoder, batch_invariant=True)
        assert_bit_equal(results, [x[row : row + 1] for x in together])
