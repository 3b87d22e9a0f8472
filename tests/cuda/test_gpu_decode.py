"""The decoding kernels on a GPU, called by their operator: what their PTX did in the emulator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cuda.decode_case import DecodeCase
from cuda.decode_cases import CASES
from cuda.decode_inputs import DecodeInputs
from torch import Tensor

from fused_attention import _ext

pytestmark = pytest.mark.gpu

REPEATS = 250
LONG = (
    DecodeCase("long", lengths=(4000, 5), heads_q=8, heads_kv=2, head_dim=128, splits=0),
    DecodeCase("long_pages", lengths=(3000,), heads_q=8, heads_kv=1, page_size=16, splits=0),
    DecodeCase("long_invariant", lengths=(2000, 900), heads_q=4, batch_invariant=True),
    DecodeCase("long_wide", lengths=(1500,), heads_q=4, heads_kv=1, head_dim=256, splits=0),
)


@pytest.fixture(autouse=True, scope="module")
def library() -> None:
    error = _ext.load_error("cuda")
    assert error is None, error


def on_gpu(tensor: Tensor | None) -> Tensor | None:
    """A copy with the same strides."""
    if tensor is None:
        return None
    storage = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage()).cuda()
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def decode(inputs: DecodeInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, lse and both caches after one call of the operator."""
    case = inputs.case
    query, key_cache, value_cache = map(
        on_gpu, (inputs.query, inputs.key_cache, inputs.value_cache)
    )
    out = query.new_full((*query.shape[:-1], value_cache.shape[-1]), torch.nan)
    lse = torch.full(query.shape[:-1], torch.nan, device="cuda")
    tensors = (
        *(inputs.new_key, inputs.new_value, inputs.lengths, inputs.cache_rows, inputs.starts),
        *(inputs.block_table, inputs.cos, inputs.sin, inputs.alibi_slopes, inputs.sinks),
    )
    torch.ops.fused_attention.cuda_decode(
        query,
        key_cache,
        value_cache,
        *map(on_gpu, tensors),
        inputs.scale,
        case.softcap,
        case.left,
        case.right,
        case.rotary_interleaved,
        case.splits,
        case.batch_invariant,
        out,
        lse,
    )
    return out.cpu(), lse.cpu(), key_cache.cpu(), value_cache.cpu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", (*CASES, *LONG), ids=str)
def test_within_budget(case, dtype):
    inputs = case.with_dtype(dtype).make()
    inputs.assert_correct(*decode(inputs))


@pytest.mark.parametrize("case", LONG, ids=str)
def test_repeated_calls_are_bit_equal(case):
    inputs = replace(case, len_new=1).make()
    first = decode(inputs)
    for _ in range(REPEATS):
        for again, before in zip(decode(inputs)[:2], first[:2], strict=True):
            assert torch.equal(again, before)


def test_works_on_the_current_stream():
    inputs = LONG[0].make()
    expected = decode(inputs)[0]
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(decode(inputs)[0], expected)


def test_what_the_kernels_cannot_do_is_an_error():
    inputs = DecodeCase("wide", head_dim=264).make()
    with pytest.raises(RuntimeError, match="head and value dims go from 1 to 256"):
        decode(inputs)
