"""Every backend on every kind of decoding: paged or not, poisoned caches, each instruction set."""

from __future__ import annotations

import pytest
import torch
from decode_case import DecodeCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import PLACES

from fused_attention import Band, attention_with_kv_cache
from fused_attention.backends import get
from fused_attention.support import DTYPES as SHORT_NAMES
from fused_attention.support import sample_decode_problem

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WINDOW = Band.window(9, 0)

CASES = (
    DecodeCase("plain"),
    DecodeCase("one_of_everything", (1,), 1, 1, new=0, head_dim=1),
    DecodeCase("first_key", (0, 0)),
    DecodeCase("no_keys", (0, 3), new=0),
    DecodeCase("no_keys_but_sinks", (0, 3), new=0, sinks=True),
    DecodeCase("no_batch", ()),
    DecodeCase("several_parts", (1300, 511, 512), 2, 1, head_dim=40),
    DecodeCase("many_heads", (70, 3), 24, 2, head_dim=32),
    *(DecodeCase(f"group_{n}", (70, 133), n, 1, head_dim=48) for n in (1, 2, 3, 7, 15)),
    *(DecodeCase(f"dim_{d}", (70, 9), head_dim=d, layout="swapped") for d in (1, 7, 33, 80, 128)),
    DecodeCase("dim_512", (67,), head_dim=512, value_dim=257),
    DecodeCase("values_unlike_keys", (70, 9), head_dim=24, value_dim=65),
    DecodeCase("speculative", (70, 9, 0), len_q=5),
    DecodeCase("chunk", (130, 9), len_q=37, page_size=16),
    DecodeCase("more_queries_than_keys", (0, 2), len_q=6, new=1),
    DecodeCase("more_keys_than_queries", (10, 2), len_q=2, new=9),
    DecodeCase("no_mask", (30, 9), len_q=4, band=Band.full()),
    *(DecodeCase(f"pages_of_{n}", (70, 0, 300), page_size=n, len_q=2) for n in (1, 3, 16, 256)),
    DecodeCase("cache_batch", (70, 9, 33), cache_batch=True),
    DecodeCase("starts", (70, 9, 300), starts=(3, 9, 290), len_q=2),
    DecodeCase("starts_at_the_end", (70, 9), starts=(70, 9), new=0),
    DecodeCase("starts_paged", (70, 9), starts=(64, 2), page_size=3),
    DecodeCase("window", (700, 9), band=WINDOW, len_q=3),
    DecodeCase("window_paged", (700, 9), band=WINDOW, page_size=16),
    DecodeCase("window_ahead", (30, 9), band=Band.window(4, 2), len_q=7),
    DecodeCase("rotary", (70, 9), rotary=1.0, len_q=3),
    DecodeCase("rotary_interleaved", (70, 9), rotary=1.0, interleaved=True, page_size=3),
    DecodeCase("rotary_part", (70, 9), rotary=0.5, head_dim=32, interleaved=True),
    DecodeCase("rotary_chunk", (70, 9), rotary=0.5, len_q=2, new=5),
    DecodeCase("softcap", (70, 9), softcap=2.0, magnitude=4.0),
    DecodeCase("alibi", (70, 9), alibi="h", len_q=2),
    DecodeCase("alibi_per_sequence", (70, 9), alibi="bh", band=Band.full(), len_q=3),
    DecodeCase("sinks", (70, 9), sinks=True),
    DecodeCase("negative_scale", (70, 9), scale=-0.4),
    DecodeCase("peaked", (600, 9), magnitude=30.0, head_dim=64),
    DecodeCase(
        "everything",
        (140, 0, 63),
        heads_q=6,
        len_q=3,
        new=4,
        head_dim=24,
        value_dim=40,
        page_size=5,
        starts=(7, 0, 1),
        rotary=0.5,
        band=Band.window(30, 1),
        softcap=3.0,
        alibi="bh",
        sinks=True,
        layout="swapped",
    ),
)


def dtypes_of(backend: str) -> list[torch.dtype]:
    """What a backend decodes on the CPU."""
    samples = {
        dtype: sample_decode_problem("cpu", name, "KV cache") for name, dtype in SHORT_NAMES.items()
    }
    return [dtype for dtype in DTYPES if not get(backend).decode_why_not(samples[dtype])]


PLACES_AND_DTYPES = [
    pytest.param(place, dtype, id=f"{place}-{dtype}")
    for place in PLACES
    if place.device == "cpu"
    for dtype in dtypes_of(place.backend)
]


def run(case: DecodeCase, backend: str, seed: int = 0, **changed) -> None:
    inputs = case.make(seed)
    caches = [torch.empty_like(cache).copy_(cache) for cache in inputs.caches]
    options = inputs.options | changed
    out, lse = attention_with_kv_cache(
        inputs.query, *caches, return_lse=True, backend=backend, **options
    )
    inputs.check(out, lse, caches)


@pytest.mark.parametrize(("place", "dtype"), PLACES_AND_DTYPES, indirect=["place"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(case, dtype, place, poisoned_allocations):
    run(case.with_dtype(dtype), place.backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_is_within_budget(case, dtype):
    run(case.with_dtype(dtype), "reference")


@st.composite
def cases(draw: st.DrawFn) -> DecodeCase:
    lengths = draw(st.lists(st.integers(0, 90), min_size=1, max_size=3).map(tuple))
    heads_kv, page_size = draw(st.integers(1, 2)), draw(st.sampled_from((0, 0, 1, 2, 7, 64)))
    starts = tuple(draw(st.integers(0, n)) for n in lengths)
    return DecodeCase(
        "drawn",
        lengths,
        heads_q=heads_kv * draw(st.integers(1, 6)),
        heads_kv=heads_kv,
        len_q=draw(st.integers(1, 4)),
        new=draw(st.sampled_from((None, 0, 1, 3))),
        head_dim=draw(st.sampled_from((2, 16, 31, 64, 100))),
        value_dim=draw(st.sampled_from((None, 1, 33, 64))),
        dtype=draw(st.sampled_from(DTYPES)),
        page_size=page_size,
        cache_batch=not page_size and draw(st.booleans()),
        starts=draw(st.sampled_from((None, starts))),
        rotary=draw(st.sampled_from((0.0, 1.0))),
        interleaved=draw(st.booleans()),
        band=draw(st.sampled_from((Band.causal(), Band.full(), WINDOW, Band.window(3, 1)))),
        softcap=draw(st.sampled_from((0.0, 5.0))),
        alibi=draw(st.sampled_from((None, "h", "bh"))),
        sinks=draw(st.booleans()),
        layout=draw(st.sampled_from(("contiguous", "swapped"))),
    )


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases())
def test_random_problems_within_budget(case, fused_backend):
    if case.new == 0:
        case = DecodeCase(**{**case.__dict__, "rotary": 0.0})
    if case.dtype not in dtypes_of(fused_backend):
        case = case.with_dtype(torch.float32)
    run(case, fused_backend)


@pytest.mark.parametrize("splits", [1, 2, 7, 1000])
def test_any_number_of_splits(splits, fused_backend):
    for case in (CASES[6], DecodeCase("window", (700, 9), band=Band.window(200, 0), len_q=2)):
        run(case, fused_backend, splits=splits)


def decoded(case: DecodeCase, backend: str, **changed):
    inputs = case.make()
    caches = [cache.clone() for cache in inputs.caches]
    options = inputs.options | changed
    return attention_with_kv_cache(
        inputs.query, *caches, return_lse=True, backend=backend, **options
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_threads_or_time(dtype, fused_backend):
    case = DecodeCase("long", (1700, 77, 900), 8, 2, head_dim=64, page_size=16, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 4, 4, 1):
            torch.set_num_threads(count)
            results.append(decoded(case, fused_backend))
    finally:
        torch.set_num_threads(threads)
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(lse, results[0][1])


def test_a_row_does_not_depend_on_the_batch(fused_backend):
    """Batch-invariant: alone, or beside longer and shorter sequences, the same bits."""
    inputs = DecodeCase("batch", (700, 3000, 1, 513), 4, 2, head_dim=32, spare=0).make()
    together, _ = attention_with_kv_cache(
        inputs.query,
        *[cache.clone() for cache in inputs.caches],
        return_lse=True,
        backend=fused_backend,
        batch_invariant=True,
        **inputs.options,
    )
    for b in range(4):
        own = slice(b, b + 1)
        alone = attention_with_kv_cache(
            inputs.query[own],
            *[cache[own].clone() for cache in inputs.caches],
            key=inputs.fresh[0][own],
            value=inputs.fresh[1][own],
            cache_lengths=inputs.options["cache_lengths"][own],
            batch_invariant=True,
            backend=fused_backend,
        )
        assert torch.equal(alone, together[own])


def test_shared_pages(fused_backend):
    """Two sequences with a common beginning give what they give with pages of their own."""
    key, value = torch.randn(4, 2, 8, 16), torch.randn(4, 2, 8, 16)
    query, lengths = torch.randn(2, 4, 1, 16), torch.tensor([14, 12])
    shared = attention_with_kv_cache(
        query,
        key,
        value,
        cache_lengths=lengths,
        block_table=torch.tensor([[3, 0], [3, 2]]),
        backend=fused_backend,
    )
    for b, pages in enumerate(([3, 0], [3, 2])):
        own = [cache[pages].transpose(0, 1).reshape(1, 2, 16, 16) for cache in (key, value)]
        alone = attention_with_kv_cache(
            query[b : b + 1], *own, cache_lengths=lengths[b : b + 1], backend=fused_backend
        )
        assert torch.equal(alone[0], shared[b])


def test_nan_in_a_query_reaches_its_own_row_only(fused_backend):
    inputs = DecodeCase("nan", (70, 9), len_q=2, new=0).make()
    inputs.query[0, 1, 1, 3] = torch.nan
    out, lse = attention_with_kv_cache(
        inputs.query, *inputs.caches, return_lse=True, backend=fused_backend, **inputs.options
    )
    assert out[0, 1, 1].isnan().all() and lse[0, 1, 1].isnan()
    out[0, 1, 1] = lse[0, 1, 1] = 0
    assert out.isfinite().all() and lse.isfinite().all()
