"""The decoding kernels, executed from their PTX: within budget of the fp64 reference.

The emulator reports every access outside of a buffer, every race between warps and every read of
what has not been written; what no kernel may look at is NaN (see decode_case.py).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cuda.decode_case import DecodeCase
from cuda.decode_cases import CASES
from cuda.decode_emulation import ROOM, Decoded, decode

from fused_attention.masks import UNBOUNDED

Case = DecodeCase
FP16_TOO = {"plain", "grouped", "dim_256", "pages_of_3", "rotary", "5_splits", "everything"}


def run(case: DecodeCase, seed: int = 0, schedule: int | None = None) -> Decoded:
    inputs = case.make(seed)
    decoded = decode(inputs, seed=schedule)
    inputs.assert_correct(decoded.out, decoded.lse, decoded.key_cache, decoded.value_cache)
    return decoded


# Warps and copies in a fixed order, and in a random one.
each_schedule = pytest.mark.parametrize("schedule", [None, 1], ids=["fixed", "random"])


@each_schedule
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bf16_within_budget(case, schedule):
    run(case, schedule=schedule)


@each_schedule
@pytest.mark.parametrize("case", [case for case in CASES if case.name in FP16_TOO], ids=str)
def test_fp16_within_budget(case, schedule):
    run(case.with_dtype(torch.float16), schedule=schedule)


@pytest.mark.parametrize("schedule", range(4))
def test_any_order_of_warps_and_blocks_gives_the_same_bits(schedule):
    case = Case("orders", heads_q=4, lengths=(150, 70), splits=3, len_new=1, rotary=32)
    torch.testing.assert_close(run(case, schedule=schedule).out, run(case).out, rtol=0, atol=0)


def test_dead_rows_are_zero():
    decoded = run(Case("dead", lengths=(0, 40), heads_q=4))
    assert (decoded.out[0] == 0).all() and (decoded.lse[0] == -torch.inf).all()


def test_a_window_reads_no_more_of_the_cache():
    """Twice the cache behind a window costs nothing; without a window it does."""
    short, long = (Case("w", left=30, lengths=(n,), splits=1).make() for n in (100, 800))
    assert decode(long).instructions < 1.05 * decode(short).instructions
    seen = replace(long.case, left=UNBOUNDED).make()
    assert decode(seen).instructions > 3 * decode(short).instructions


def test_heads_of_a_group_share_what_is_read():
    alone, group = (Case("g", heads_q=n, heads_kv=1, lengths=(200,)).make() for n in (1, 8))
    assert decode(group).instructions < 1.2 * decode(alone).instructions


INVARIANT = Case(
    "invariant",
    lengths=(1100, 30, 513),
    heads_q=4,
    heads_kv=1,
    len_new=1,
    sinks=True,
    batch_invariant=True,
)


def test_batch_invariant_rows_do_not_depend_on_the_batch():
    """Each row alone, in a cache that just fits, gives the bits that it gives in the batch."""
    together = INVARIANT.make()
    decoded = decode(together)
    together.assert_correct(decoded.out, decoded.lse, decoded.key_cache, decoded.value_cache)
    for b, length in enumerate(INVARIANT.lengths):
        case = replace(INVARIANT, lengths=(length,))
        alone = replace(
            together,
            case=case,
            query=together.query[b : b + 1],
            key_cache=together.key_cache[b : b + 1, :, : length + 1].contiguous(),
            value_cache=together.value_cache[b : b + 1, :, : length + 1].contiguous(),
            new_key=together.new_key[b : b + 1],
            new_value=together.new_value[b : b + 1],
            lengths=together.lengths[b : b + 1],
        )
        row = decode(alone, multiprocessors=100)
        assert torch.equal(row.out[0], decoded.out[b])
        assert torch.equal(row.lse[0], decoded.lse[b])


def test_batch_invariant_rows_do_not_depend_on_a_window_of_others():
    case = replace(INVARIANT, lengths=(700, 100), left=300, len_q=1)
    inputs = case.make()
    decoded = decode(inputs)
    inputs.assert_correct(decoded.out, decoded.lse, decoded.key_cache, decoded.value_cache)


def plan(multiprocessors: int = 100, **changed):
    """The plan of a step without memory."""
    fields = {
        "dtype": "bfloat16",
        "batch": 2,
        "heads_q": 2,
        "heads_kv": 2,
        "len_q": 1,
        "len_k": 4096,
        "head_dim": 64,
        "value_dim": 64,
        "cache_lengths": 1 << 33,
    }
    return ROOM.module.plan(multiprocessors, **(fields | changed))


def test_parts_fill_the_machine_and_are_not_too_short():
    few = plan(batch=1, heads_q=8, heads_kv=8)
    assert few["splits"] == 2 * 100 // 8 and few["combined"]
    assert plan(batch=64, heads_q=32, heads_kv=8)["splits"] == 1
    assert plan(batch=1, len_k=100)["splits"] == 1
    assert plan(batch=1, heads_q=1, heads_kv=1, len_k=1024)["splits"] == 1024 // 128
    assert plan(batch=1, left=200, right=0)["splits"] == 1
    assert plan(splits=7)["splits"] == 7


def test_workspace_holds_a_row_and_its_lse_for_each_part():
    assert plan(splits=1)["workspace_bytes"] == 0
    needed = plan(batch=2, heads_q=6, heads_kv=3, len_q=2, splits=5, head_dim=64, value_dim=50)
    assert needed["workspace_bytes"] == 5 * 2 * 6 * 2 * (52 + 1) * 4


def test_batch_invariant_parts_ignore_machine_and_splits():
    for multiprocessors in (1, 1000):
        for splits in (0, 3):
            told = plan(multiprocessors=multiprocessors, splits=splits, batch_invariant=True)
            assert told["splits"] == 4096 // 512
    assert plan(len_k=10, batch_invariant=True)["combined"]


def test_nothing_to_do_launches_nothing():
    for empty in ({"batch": 0}, {"len_q": 0}):
        assert all(blocks == 0 for _, blocks, _, _ in plan(**empty)["launches"])


REFUSALS = (
    ({"dtype": "float32"}, "take bf16 and fp16"),
    ({"bias": 1 << 33}, "no bias"),
    ({"dropout_threshold": 1}, "no dropout"),
    ({"heads_q": 3, "heads_kv": 2}, "3 query heads do not divide into 2"),
    ({"heads_kv": 0}, "do not divide"),
    ({"head_dim": 257}, "go from 1 to 256, got 257 and 64"),
    ({"value_dim": 0}, "go from 1 to 256"),
    ({"len_k": 1 << 31}, "lengths go up to"),
    ({"cache_lengths": 0}, "needs cache_lengths"),
    ({"block_table": 1 << 33}, "a key or more, got 0"),
    ({"block_table": 1 << 33, "page_size": 4, "cache_batch": 1 << 33}, "cache_batch"),
    ({"rotary_dim": 3}, "must be even and at most head_dim, got 3"),
    ({"rotary_dim": 66}, "must be even and at most head_dim, got 66"),
    ({"rotary_dim": 32}, "needs cos and sin"),
    ({"rotary_dim": 32, "rotary_cos": 8, "rotary_sin": 8, "rotary_dtype": "float16"}, "be fp32 or"),
    ({"batch": 1 << 20, "heads_q": 1 << 12, "heads_kv": 1 << 12}, "too many rows"),
)


@pytest.mark.parametrize("changed, message", REFUSALS, ids=[m for _, m in REFUSALS])
def test_refusals(changed, message):
    with pytest.raises(ValueError, match=message):
        plan(**changed)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_one_tensor_off_16_bytes_is_enough_to_copy_by_elements(name):
    data, batch, head, row = rows = (1 << 33, 1 << 16, 1 << 12, 64)
    tensors = {"query": rows, "key": rows, "value": rows}
    assert plan(**tensors)["aligned"]
    for wrong in ((data + 2, batch, head, row), (data, batch, head, 65), (data, 1 << 2, head, row)):
        assert not plan(**(tensors | {name: wrong}))["aligned"]
