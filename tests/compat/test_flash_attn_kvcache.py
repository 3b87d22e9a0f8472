"""flash_attn_with_kvcache of flash_attn 2: append, rotary, pages, padding, row numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compat.cached_reference import CachedCase
from compat.helpers import assert_same, integers, normal
from torch import Tensor

from fused_attention.compat import kv_cache, rotation
from fused_attention.compat.flash_attn import flash_attn_with_kvcache

SLOPES = torch.tensor([[0.3, 0.05, 0.8, 0.1], [0.2, 0.6, 0.1, 0.4]])
CASES = {
    "read": CachedCase(),
    "one query": CachedCase(len_q=(1, 1)),
    "append": CachedCase(new=(2, 2)),
    "append as many as queries": CachedCase(new=(3, 3), lengths=(0, 9)),
    "one length": CachedCase(new=(2, 2), lengths=(4, 4)),
    "rotary": CachedCase(new=(2, 2), rotary=(8, True)),
    "rotary, halves": CachedCase(new=(2, 2), rotary=(8, False)),
    "rotary, part of the head": CachedCase(new=(3, 3), rotary=(4, False)),
    "left padding": CachedCase(leftpad=(1, 7)),
    "left padding, append, rotary": CachedCase(leftpad=(2, 4), new=(2, 2), rotary=(8, True)),
    "row numbers": CachedCase(new=(2, 2), rows=(3, 1), n_rows=4),
    "row numbers, left padding": CachedCase(rows=(2, 0), n_rows=3, leftpad=(1, 2)),
    "more rows than sequences": CachedCase(new=(2, 2), n_rows=5),
    "pages": CachedCase(page_size=4),
    "pages, append, rotary": CachedCase(page_size=4, new=(3, 3), rotary=(8, False)),
    "pages of one token": CachedCase(page_size=1, new=(3, 3)),
    "pages of three": CachedCase(page_size=3, new=(2, 2), leftpad=(1, 0)),
    "pages and row numbers": CachedCase(page_size=6, new=(2, 2), rows=(2, 1), n_rows=3),
    "value dim": CachedCase(new=(2, 2), dim_v=12),
    "one key head": CachedCase(heads_k=1, new=(1, 1), len_q=(1, 1)),
}
MASKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "causal": ({"causal": True}, {"causal": True}),
    "window": ({"window_size": (3, 1)}, {"window": (3, 1)}),
    "ALiBi": ({"alibi_slopes": SLOPES, "causal": True}, {"slopes": SLOPES, "causal": True}),
    "softcap, scale": ({"softcap": 1.5, "softmax_scale": 0.5}, {"softcap": 1.5, "scale": 0.5}),
}


def arguments(case: CachedCase, k_cache: Tensor, v_cache: Tensor) -> dict[str, Any]:
    """The case as keywords."""
    keywords: dict[str, Any] = {
        "q": torch.stack(case.q),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "cache_seqlens": integers(*case.lengths),
    }
    if case.new is not None:
        keywords |= {"k": torch.stack(case.k_new), "v": torch.stack(case.v_new)}
    if case.rotary is not None:
        keywords |= {"rotary_cos": case.cos, "rotary_sin": case.sin}
        keywords["rotary_interleaved"] = case.rotary[1]
    if case.leftpad is not None:
        keywords["cache_leftpad"] = integers(*case.leftpad)
    if case.rows is not None:
        keywords["cache_batch_idx"] = integers(*case.rows)
    return keywords


def assert_as_expected(case: CachedCase, mask: str) -> None:
    """Result, lse and everything in the cache."""
    options, plain = MASKS[mask]
    k_cache, v_cache, table = case.caches()
    before = [case.unpaged(cache, table).clone() for cache in (k_cache, v_cache)]
    found, lse = flash_attn_with_kvcache(
        **arguments(case, k_cache, v_cache),
        **options,
        block_table=table,
        return_softmax_lse=True,
    )
    outs, lses = case.expected(**plain)
    assert_same(found, torch.stack(outs))
    assert_same(lse, torch.stack(lses))
    rows = case.rows or range(len(case.lengths))
    for cache, old, grown in zip((k_cache, v_cache), before, case.grown(), strict=True):
        wanted = old.clone()
        for b, row in enumerate(rows):
            wanted[row, case.lengths[b] : len(grown[b])] = grown[b][case.lengths[b] :]
        torch.testing.assert_close(
            case.unpaged(cache, table), wanted, rtol=1e-12, atol=1e-12, equal_nan=True
        )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CASES)
def test_out_lse_and_cache(name: str, mask: str) -> None:
    assert_as_expected(CASES[name], mask)


@pytest.mark.parametrize("name", CASES)
def test_without_reading_any_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where reading a length would wait for all work before it."""
    for module in (kv_cache, rotation):
        monkeypatch.setattr(module, "can_read", lambda tensor: False)
    assert_as_expected(CASES[name], "causal")


@pytest.mark.parametrize("name", ["left padding, append, rotary", "pages, append, rotary"])
def test_integers_of_any_dtype(name: str) -> None:
    case = CASES[name]
    outs = []
    for dtype in (torch.int32, torch.int64):
        k_cache, v_cache, table = case.caches()
        keywords = arguments(case, k_cache, v_cache)
        for argument in ("cache_seqlens", "cache_leftpad"):
            if argument in keywords:
                keywords[argument] = keywords[argument].to(dtype)
        table = None if table is None else table.to(dtype)
        outs.append(flash_attn_with_kvcache(**keywords, block_table=table, causal=True))
    assert torch.equal(*outs)


def test_int_lengths_and_a_full_cache() -> None:
    case = CachedCase(lengths=(4, 4), new=(2, 2), rotary=(8, True))
    caches = [case.caches()[:2] for _ in range(2)]
    keywords = [arguments(case, *pair) for pair in caches]
    keywords[1]["cache_seqlens"] = 4
    assert torch.equal(*(flash_attn_with_kvcache(**own, causal=True) for own in keywords))
    for one, other in zip(*caches, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, rtol=0, atol=0)
    full = CachedCase(lengths=(12, 12))
    k_cache, v_cache, _ = full.caches()
    out = flash_attn_with_kvcache(torch.stack(full.q), k_cache, v_cache)
    assert_same(out, torch.stack(full.expected()[0]))


def test_positional_order() -> None:
    case = CASES["rotary"]
    k_cache, v_cache, _ = case.caches()
    out = flash_attn_with_kvcache(
        torch.stack(case.q),
        k_cache,
        v_cache,
        torch.stack(case.k_new),
        torch.stack(case.v_new),
        case.cos,
        case.sin,
        integers(*case.lengths),
        None,
        None,
        None,
        0.3,
        True,
        (5, 7),
        1.5,
        True,
        SLOPES,
        3,
    )
    plain = {"scale": 0.3, "causal": True, "window": (5, 0), "softcap": 1.5, "slopes": SLOPES}
    assert_same(out, torch.stack(case.expected(**plain)[0]))


def test_no_gradient_and_no_graph() -> None:
    case = CASES["append"]
    k_cache, v_cache, _ = case.caches()
    keywords = arguments(case, k_cache, v_cache)
    keywords |= {name: keywords[name].requires_grad_() for name in ("q", "k", "v")}
    assert not flash_attn_with_kvcache(**keywords).requires_grad
    assert not k_cache.requires_grad and not v_cache.requires_grad


def test_decoding_token_by_token_is_one_causal_call() -> None:
    q, k, v = normal(2, 9, 4, 8, seed=1), normal(2, 9, 2, 8, seed=2), normal(2, 9, 2, 8, seed=3)
    angle = normal(9, 4, seed=4)
    tables = angle.cos(), angle.sin()
    step, whole = torch.full((2, 2, 16, 2, 8), torch.nan).double().unbind(), None
    outs = [
        flash_attn_with_kvcache(
            q[:, t : t + 1], *step, k[:, t : t + 1], v[:, t : t + 1], *tables, t, causal=True
        )
        for t in range(9)
    ]
    whole = torch.full((2, 2, 16, 2, 8), torch.nan).double().unbind()
    out = flash_attn_with_kvcache(q, *whole, k, v, *tables, 0, causal=True)
    assert_same(torch.cat(outs, dim=1), out)


APPEND = CASES["append"]
WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "no lengths": (ValueError, "cache_seqlens: must say where", {"cache_seqlens": None}),
    "k alone": (ValueError, "v: k and v must be given together", {"v": None}),
    "no room": (
        ValueError,
        r"cache_seqlens: .* in \[0, 12\], the cache's length, got 13",
        {"cache_seqlens": integers(3, 11)},
    ),
    "no room, int": (ValueError, "cache_seqlens: .* got 13", {"cache_seqlens": 11}),
    "negative length": (ValueError, "cache_seqlens: .* got -", {"cache_seqlens": integers(3, -5)}),
    "lengths of another batch": (
        ValueError,
        "cache_seqlens: must have 2 entries",
        {"cache_seqlens": integers(3)},
    ),
    "lengths are a list": (
        TypeError,
        "cache_seqlens: must be a torch.Tensor, got list",
        {"cache_seqlens": [3, 7]},
    ),
    "lengths are floats": (
        TypeError,
        "cache_seqlens: must be an integer",
        {"cache_seqlens": torch.ones(2)},
    ),
    "padding": (ValueError, "cache_leftpad: must be in", {"cache_leftpad": integers(9, 0)}),
    "k's heads": (ValueError, "k: must be a tensor .* fits a cache", {"k": torch.ones(2, 2, 3, 8)}),
    "k's dtype": (TypeError, "k: must have its cache's dtype", {"k": torch.ones(2, 2, 2, 8)}),
    "q's rank": (ValueError, "q: must be a tensor", {"q": torch.ones(3, 4, 8)}),
    "cache's rank": (ValueError, "k_cache: must be a tensor", {"k_cache": torch.ones(3, 4, 8)}),
    "caches differ": (ValueError, "v_cache: must be a tensor", {"v_cache": torch.ones(2, 9, 2, 8)}),
    "cache is strided": (
        ValueError,
        "k_cache: must be contiguous",
        {"k_cache": torch.ones(2, 12, 8, 2).transpose(2, 3)},
    ),
    "too few rows": (
        ValueError,
        "k_cache: must have a row for each of the 2",
        {"k_cache": torch.ones(1, 12, 2, 8), "v_cache": torch.ones(1, 12, 2, 8)},
    ),
    "table's rank": (ValueError, "block_table: must be a tensor", {"block_table": integers(0, 1)}),
    "sin is missing": (ValueError, "rotary_sin: .* together", {"rotary_cos": torch.ones(20, 4)}),
    "tables are too wide": (
        ValueError,
        "cos: rotary_dim must be at most",
        {"rotary_cos": torch.ones(20, 5), "rotary_sin": torch.ones(20, 5)},
    ),
    "tables are too short": (
        ValueError,
        "cache_seqlens: positions must be within the 8 rows",
        {"rotary_cos": torch.ones(8, 4), "rotary_sin": torch.ones(8, 4)},
    ),
    "rotary without k": (
        ValueError,
        "rotary_cos: needs the new k and v",
        {"k": None, "v": None, "rotary_cos": torch.ones(20, 4), "rotary_sin": torch.ones(20, 4)},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes(name: str) -> None:
    error, message, wrong = WRONG[name]
    k_cache, v_cache, _ = APPEND.caches()
    before = k_cache.clone()
    with pytest.raises(error, match=message):
        flash_attn_with_kvcache(**arguments(APPEND, k_cache, v_cache) | wrong)
    torch.testing.assert_close(k_cache, before, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("new", [None, (2, 2)])
def test_sequences_longer_than_their_pages(new: tuple[int, int] | None) -> None:
    case = CachedCase(page_size=4, new=new)
    k_cache, v_cache, table = case.caches()
    keywords = arguments(case, k_cache, v_cache) | {"cache_seqlens": integers(3, 13)}
    with pytest.raises(RuntimeError, match="block_table: 3 pages of 4 tokens hold 12"):
        flash_attn_with_kvcache(**keywords, block_table=table)
