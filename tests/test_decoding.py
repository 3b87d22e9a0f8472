"""attention_with_kv_cache: what it refuses, what it leaves alone, and its operator's contract."""

from __future__ import annotations

import pytest
import torch
from decode_case import DecodeCase

import fused_attention as fa
from fused_attention import Band, attention_with_kv_cache, backends
from fused_attention.backends.call import DecodeCall
from fused_attention.decoding import decode_op, explain_with_kv_cache

BACKENDS = [info.name for info in backends() if info.available]
CONTIGUOUS = DecodeCase("contiguous", (5, 40), rotary=1.0, cache_batch=True)
PAGED = DecodeCase("paged", (5, 40), rotary=1.0, page_size=16)


def arguments(case: DecodeCase, **changed):
    """Caches to write to and every keyword of a call."""
    inputs = case.make()
    key_cache, value_cache = (torch.empty_like(x).copy_(x) for x in inputs.caches)
    named = {"query": inputs.query, "key_cache": key_cache, "value_cache": value_cache}
    return named | inputs.options | changed


WRONG = {
    "no tensor": ({"query": 3}, "query: must be a torch.Tensor"),
    "rank": ({"query": torch.zeros(2, 4, 16)}, "query: must be 4-D"),
    "dtype": ({"key_cache": torch.zeros(5, 2, 44, 16).bfloat16()}, "key_cache: must have query's"),
    "value rows": ({"value_cache": torch.zeros(4, 2, 44, 16)}, "value_cache: must have key_cache"),
    "heads": ({"query": torch.zeros(2, 3, 1, 16)}, "key_cache: its number of heads"),
    "head_dim": ({"query": torch.zeros(2, 4, 1, 8)}, "key_cache: must have query's head_dim 8"),
    "value alone": ({"key": None}, "key: needs the other one too"),
    "key's shape": ({"key": torch.zeros(2, 4, 1, 16)}, r"key: must have shape \[2, 2, new, 16\]"),
    "key's dtype": ({"key": torch.zeros(2, 2, 1, 16).double()}, "key: must have query's dtype"),
    "more values": ({"value": torch.zeros(2, 2, 2, 16)}, r"value: must have shape \[2, 2, new"),
    "lengths' dtype": ({"cache_lengths": torch.zeros(2)}, "cache_lengths: must be an integer"),
    "lengths' size": ({"cache_lengths": torch.zeros(3).int()}, "cache_lengths: must have 2 ent"),
    "too long": ({"cache_lengths": torch.tensor([5, 44])}, r"cache_lengths: with 1 new keys must"),
    "too long an int": ({"cache_lengths": 44}, r"must be in \[0, 43\], got 44 at index 0"),
    "wraps": ({"cache_lengths": torch.tensor([5, 1 << 32])}, "cache_lengths: with 1 new keys"),
    "negative": ({"cache_lengths": torch.tensor([-1, 4])}, "got -1 at index 0"),
    "row": ({"cache_batch": torch.tensor([0, 5])}, r"cache_batch: must be in \[0, 5\), got 5 at"),
    "same row": ({"cache_batch": torch.tensor([1, 1])}, "cache_batch: must not repeat a row"),
    "start": ({"cache_starts": torch.tensor([0, 42])}, r"cache_starts: must be in \[0, 41\]"),
    "cos alone": ({"rotary_sin": None}, "rotary_sin: rotary_cos and rotary_sin must be given"),
    "short tables": (
        {"rotary_cos": torch.zeros(40, 8), "rotary_sin": torch.zeros(40, 8)},
        "rotary_cos: must have a row for each position up to 40, got 40",
    ),
    "wide tables": (
        {"rotary_cos": torch.zeros(50, 9), "rotary_sin": torch.zeros(50, 9)},
        r"rotary_cos: must have shape \[positions, rotary_dim / 2\], rotary_dim <= 16",
    ),
    "rotary alone": ({"key": None, "value": None}, "rotary_cos: needs key and value"),
    "band's offset": ({"band": Band.causal(offset=0)}, "band: its offset must be None"),
    "band and window": ({"window": (3, 0)}, "band: excludes causal and window"),
    "window": ({"band": None, "window": (3, 1)}, "window: right must be None or 0"),
    "softcap": ({"softcap": -1.0}, "softcap: must be finite"),
    "scale": ({"scale": float("nan")}, "scale: must be finite"),
    "slopes": ({"alibi_slopes": torch.zeros(3)}, "alibi_slopes: must have shape"),
    "sinks": ({"sinks": torch.zeros(3)}, "sinks: must have shape"),
    "splits": ({"splits": -1}, "splits: must be in"),
    "both": ({"splits": 2, "batch_invariant": True}, "splits: must be None with batch_inv"),
    "backend": ({"backend": "gpu"}, "backend: must be one of"),
    "expanded": (
        {"key_cache": torch.zeros(5, 1, 44, 16).expand(-1, 2, -1, -1)},
        "key_cache: must not be expanded",
    ),
}

WRONG_PAGES = {
    "rank": ({"block_table": torch.zeros(2).int()}, "block_table: must have shape"),
    "dtype": ({"block_table": torch.zeros(2, 3)}, "block_table: must be an integer"),
    "too high": ({"block_table": torch.tensor([[0, 9, 9], [1, 8, 9]])}, "got 8"),
    "negative": ({"block_table": torch.tensor([[-1, 3, 3], [1, 2, 3]])}, "got -1"),
    "shared": ({"block_table": torch.tensor([[0, 3, 4], [1, 2, 0]])}, "same place of a page"),
    "too few": ({"block_table": torch.tensor([[0], [1]])}, "cache_lengths: with 1 new"),
    "with rows": ({"cache_batch": torch.tensor([0, 1])}, "cache_batch: cannot be used with"),
}


def refused(case: DecodeCase, changed, message: str, backend: str) -> None:
    given = arguments(case, **({"backend": backend} | changed))
    caches = given["key_cache"], given["value_cache"]
    before = [cache.clone() for cache in caches]
    with pytest.raises((TypeError, ValueError), match=message):
        attention_with_kv_cache(**given)
    for cache, old in zip(caches, before, strict=True):
        torch.testing.assert_close(cache, old, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_refused_and_nothing_is_written(wrong, backend):
    refused(CONTIGUOUS, *WRONG[wrong], backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", WRONG_PAGES)
def test_wrong_pages_are_refused_and_nothing_is_written(wrong, backend):
    case = DecodeCase("paged", (5, 31), page_size=16, spare=1)
    if wrong == "shared":  # both append: 5 in page 0 of the first, 32 in page 0 of the second
        case = DecodeCase("paged", (5, 37), page_size=16, spare=1)
    refused(case, *WRONG_PAGES[wrong], backend)


def test_gradients_are_refused():
    given = arguments(CONTIGUOUS)
    given["query"].requires_grad_()
    with pytest.raises(RuntimeError, match="a cache carries no gradients"):
        attention_with_kv_cache(**given)
    with torch.no_grad():
        attention_with_kv_cache(**given)


def test_autograd_sees_that_the_caches_have_changed():
    given = arguments(CONTIGUOUS)
    versions = given["key_cache"]._version, given["value_cache"]._version
    attention_with_kv_cache(**given)
    assert given["key_cache"]._version > versions[0]
    assert given["value_cache"]._version > versions[1]


def test_one_length_for_all_sequences():
    given = arguments(DecodeCase("even", (7, 7), new=0))
    expected = attention_with_kv_cache(**given)
    assert torch.equal(attention_with_kv_cache(**(given | {"cache_lengths": 7})), expected)


def test_causal_and_window_are_bands():
    given = arguments(DecodeCase("chunk", (7, 30), new=0, len_q=4))
    for options, band in (
        ({}, Band.causal()),
        ({"causal": False}, Band.full()),
        ({"window": (5, 0)}, Band.sliding(6)),
        ({"causal": False, "window": (5, 2)}, Band.window(5, 2)),
    ):
        expected = attention_with_kv_cache(**(given | {"band": band}))
        found = attention_with_kv_cache(**(given | {"band": None} | options))
        assert torch.equal(found, expected)


def test_out_keeps_the_layout_of_the_query():
    out = attention_with_kv_cache(**arguments(DecodeCase("swapped", layout="swapped", len_q=3)))
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("case", [CONTIGUOUS, PAGED], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_operator_contract(case, backend):
    case = DecodeCase(**{**case.__dict__, "alibi": "h", "sinks": True})
    given = arguments(case)
    for name in ("key_cache", "value_cache"):
        given[name].nan_to_num_(0.0)  # opcheck compares, and NaN equals nothing
    tensors = [given[name] for name in DecodeCall._fields[:13]]
    tensors = [x.int() if x is not None and x.dtype == torch.int64 else x for x in tensors]
    torch.library.opcheck(decode_op, (*tensors, 0.25, 0.0, 1 << 30, 0, False, 0, False, backend))


def test_compiled_with_growing_lengths():
    """One graph without breaks serves every length, and the caches grow as without it."""

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(query, key_cache, value_cache, key, value, lengths):
        options = {"key": key, "value": value, "cache_lengths": lengths}
        return attention_with_kv_cache(query, key_cache, value_cache, **options) + 1

    caches = [torch.randn(2, 2, 50, 16) for _ in range(2)]
    ours = [cache.clone() for cache in caches]
    for length in (0, 3, 40):
        query, key, value = torch.randn(2, 4, 1, 16), *torch.randn(2, 2, 2, 1, 16)
        lengths = torch.tensor([length, length // 2])
        out = step(query, *ours, key, value, lengths)
        options = {"key": key, "value": value, "cache_lengths": lengths}
        assert torch.equal(out, attention_with_kv_cache(query, *caches, **options) + 1)
        assert all(map(torch.equal, ours, caches))


def test_it_shows_in_the_profiler():
    given = arguments(CONTIGUOUS)
    with torch.profiler.profile() as profile:
        attention_with_kv_cache(**given)
    names = {event.key for event in profile.key_averages()}
    assert any(name.startswith("fused_attention::") for name in names)


def test_explain():
    given = arguments(PAGED)
    options = {n: x for n, x in given.items() if n not in ("query", "key_cache", "value_cache")}
    operands = given["query"], given["key_cache"], given["value_cache"]
    before = given["value_cache"].clone()
    explanation = explain_with_kv_cache(*operands, **options)
    assert explanation.chosen == BACKENDS[0]
    text = str(explanation)
    assert "decoding, B=2 H=4/2 Lq=1 capacity=48 D=16/16" in text
    assert "pages of 16, new keys 1, rotary_dim 16" in text
    assert explanation.as_dict()["problem"]["page_size"] == 16
    torch.testing.assert_close(given["value_cache"], before, rtol=0, atol=0, equal_nan=True)
    wide = torch.zeros(2, 4, 1, 600), torch.zeros(2, 4, 9, 600), torch.zeros(2, 4, 9, 600)
    reasons = explain_with_kv_cache(*wide, cache_lengths=3).reasons
    assert any("go up to 512" in reason for reason in reasons["cpu"])


def test_decoding_token_by_token_is_attention():
    """A prefill and single steps through a paged cache give what causal attention gives."""
    query, key, value = torch.randn(3, 1, 4, 40, 16)
    caches = [torch.full((12, 4, 4, 16), torch.nan) for _ in range(2)]
    table, out = torch.randperm(12)[None, :10], []
    for begin, end in [(0, 30), *((n, n + 1) for n in range(30, 40))]:
        rows = slice(begin, end)
        out.append(
            attention_with_kv_cache(
                query[:, :, rows],
                *caches,
                key=key[:, :, rows],
                value=value[:, :, rows],
                cache_lengths=begin,
                block_table=table,
            )
        )
    expected = fa.attention(query, key, value, causal=True)
    torch.testing.assert_close(torch.cat(out, 2), expected)
