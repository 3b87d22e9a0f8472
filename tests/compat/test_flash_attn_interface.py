"""flash-attn 3's functions: their order of arguments, chunks, unused tokens, qv, packed caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compat.cached_reference import CachedCase
from compat.helpers import assert_same, draw, integers, normal
from compat.plain_attention import plain_attention, plain_batch
from compat.test_flash_attn_kvcache import arguments
from torch import Tensor

from fused_attention.compat.flash_attn_interface import (
    flash_attn_combine,
    flash_attn_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    get_scheduler_metadata,
)

CU_Q, CU_K = integers(0, 3, 3, 8), integers(0, 4, 6, 15)


def assert_gradients(out: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    found = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
    wanted = torch.autograd.grad(expected.square().sum(), inputs, allow_unused=True)
    for actual, exact in zip(found, wanted, strict=True):
        assert_same(actual, torch.zeros_like(actual) if exact is None else exact)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, {}),
        ({"causal": True, "window_size": (2, 5)}, {"causal": True, "window": (2, 0)}),
        ({"window_size": torch.tensor([1, 2])}, {"window": (1, 2)}),
        ({"softcap": 1.5, "softmax_scale": 0.4}, {"softcap": 1.5, "scale": 0.4}),
        ({"attention_chunk": 3}, {"chunk": 3}),
        ({"attention_chunk": 2, "causal": True}, {"chunk": 2, "causal": True}),
        ({"attention_chunk": 4, "window_size": (1, 1)}, {"chunk": 4, "window": (1, 1)}),
        ({"attention_chunk": 99}, {"chunk": 99}),
        ({"num_splits": 3, "pack_gqa": True, "sm_margin": 4, "deterministic": True}, {}),
    ],
)
@pytest.mark.parametrize("lengths", [(5, 7), (7, 3), (1, 6)], ids=str)
def test_dense(options: dict[str, Any], plain: dict[str, Any], lengths: tuple[int, int]) -> None:
    q, k, v = draw(*lengths, dim_v=12)
    out, lse = flash_attn_func(q, k, v, return_attn_probs=True, **options)
    expected, expected_lse = plain_batch(q, k, v, **plain)
    assert_same(out, expected)
    assert_same(lse, expected_lse)
    assert torch.equal(flash_attn_func(q, k, v, **options), out)
    assert_gradients(out, expected, (q, k, v))


def test_positional_order() -> None:
    q, k, v = draw()
    tail = (0.4, True, None, None, None, None, (2, 5), 0, 1.5, 1, None, False, 0, False)
    expected, _ = plain_batch(q, k, v, scale=0.4, causal=True, window=(2, 0), softcap=1.5)
    assert_same(flash_attn_func(q, k, v, *tail), expected)


def test_queries_to_the_values() -> None:
    q, k, v = draw(dim_v=12)
    qv = normal(2, 5, 4, 12, seed=8).requires_grad_()
    expected, _ = plain_batch(torch.cat([q, qv], -1), torch.cat([k, v], -1), v, causal=True)
    out = flash_attn_func(q, k, v, causal=True, qv=qv)
    assert_same(out, expected)
    assert_gradients(out, expected, (q, k, v, qv))
    with pytest.raises(ValueError, match="qv: must be a tensor"):
        flash_attn_func(q, k, v, qv=qv[..., :8])


def test_stacked_tensors() -> None:
    q, k, v = draw(6, 6, heads_k=4)
    qkv = torch.stack([q, k, v], dim=2)
    out = flash_attn_qkvpacked_func(qkv, 0.4, True)
    assert torch.equal(out, flash_attn_func(q, k, v, 0.4, True))
    q, k, v = draw(6, 6)
    grouped = torch.cat([q, k, v], dim=2)
    out = flash_attn_qkvpacked_func(grouped, causal=True, num_heads_q=4)
    assert torch.equal(out, flash_attn_func(q, k, v, causal=True))
    with pytest.raises(ValueError, match="qkv: must be a tensor"):
        flash_attn_qkvpacked_func(grouped)


PACKED_OPTIONS = [
    ({}, {}),
    ({"causal": True}, {"causal": True}),
    ({"window_size": (2, 1)}, {"window": (2, 1)}),
    ({"attention_chunk": 2, "causal": True}, {"chunk": 2, "causal": True}),
    ({"attention_chunk": 3}, {"chunk": 3}),
]


@pytest.mark.parametrize("used", [None, ((3, 0, 4), (2, 2, 7)), ((1, 0, 5), (0, 0, 9))], ids=str)
@pytest.mark.parametrize(("options", "plain"), PACKED_OPTIONS)
def test_packed(options: dict[str, Any], plain: dict[str, Any], used: Any) -> None:
    q, k, v = (normal(9, 4, 8, seed=1), normal(16, 2, 8, seed=2), normal(16, 2, 8, seed=3))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    counts = (
        {} if used is None else {"seqused_q": integers(*used[0]), "seqused_k": integers(*used[1])}
    )
    out, lse = flash_attn_varlen_func(
        q, k, v, CU_Q, CU_K, 5, 9, return_attn_probs=True, **counts, **options
    )
    used_q, used_k = (CU_Q.diff().tolist(), CU_K.diff().tolist()) if used is None else used
    expected = torch.zeros_like(out)
    expected_lse = torch.full_like(lse, -torch.inf)
    for b in range(3):
        rows = slice(int(CU_Q[b]), int(CU_Q[b]) + used_q[b])
        keys = slice(int(CU_K[b]), int(CU_K[b]) + used_k[b])
        expected[rows], expected_lse[:, rows] = plain_attention(q[rows], k[keys], v[keys], **plain)
    assert_same(out, expected)
    assert_same(lse, expected_lse)
    assert_gradients(out, expected, (q, k, v))
    again = flash_attn_varlen_func(q, k, v, CU_Q, CU_K, 5, 9, **counts, **options)
    assert torch.equal(again, out)


CACHED = {
    "append": CachedCase(new=(2, 2)),
    "pages, row numbers, padding": CachedCase(
        page_size=3, new=(2, 2), rows=(2, 0), n_rows=3, leftpad=(1, 4), rotary=(8, True)
    ),
    "positions of their own": CachedCase(new=(3, 3), rotary=(4, False), first=(1, 2)),
}
MASKS = [
    ({}, {}),
    ({"causal": True}, {"causal": True}),
    ({"causal": True, "attention_chunk": 4}, {"causal": True, "chunk": 4}),
]


def cached_arguments(case: CachedCase) -> tuple[dict[str, Any], Tensor]:
    k_cache, v_cache, table = case.caches()
    keywords = arguments(case, k_cache, v_cache) | {"page_table": table}
    if case.first is not None:
        keywords["rotary_seqlens"] = integers(*case.first)
    return keywords, table


@pytest.mark.parametrize(("options", "plain"), MASKS)
@pytest.mark.parametrize("name", CACHED)
def test_cache(name: str, options: dict[str, Any], plain: dict[str, Any]) -> None:
    case = CACHED[name]
    keywords, table = cached_arguments(case)
    found = flash_attn_with_kvcache(**keywords, **options, return_softmax_lse=True)
    out, lse, *partial = found
    outs, lses = case.expected(**plain)
    assert_same(out, torch.stack(outs))
    assert_same(lse, torch.stack(lses))
    assert [tensor.numel() for tensor in partial] == [0, 0]
    rows = case.rows or (0, 1)
    for cache, grown in zip((keywords["k_cache"], keywords["v_cache"]), case.grown(), strict=True):
        plain_cache = case.unpaged(cache, table)
        for row, tokens in zip(rows, grown, strict=True):
            torch.testing.assert_close(
                plain_cache[row, : len(tokens)], tokens, equal_nan=True, rtol=1e-12, atol=1e-12
            )


@pytest.mark.parametrize(("options", "plain"), MASKS)
def test_cache_with_packed_queries_and_keys(options: dict[str, Any], plain: dict[str, Any]) -> None:
    case = CachedCase(lengths=(3, 0, 6), len_q=(2, 4, 1), new=(1, 3, 0), rotary=(8, True), n_rows=3)
    k_cache, v_cache, _ = case.caches()
    out, lse, *_ = flash_attn_with_kvcache(
        torch.cat(case.q),
        k_cache,
        v_cache,
        torch.cat([*case.k_new, case.k_new[0]]),  # one row that belongs to no sequence
        torch.cat([*case.v_new, case.v_new[0]]),
        rotary_cos=case.cos,
        rotary_sin=case.sin,
        cache_seqlens=integers(*case.lengths),
        cu_seqlens_q=integers(0, 2, 6, 7),
        cu_seqlens_k_new=integers(0, 1, 4, 4),
        max_seqlen_q=4,
        return_softmax_lse=True,
        **options,
    )
    outs, lses = case.expected(**plain)
    assert_same(out, torch.cat(outs))
    assert_same(lse, torch.cat(lses, dim=1))
    for b, tokens in enumerate(case.grown()[0]):
        assert_same(k_cache[b, : len(tokens)], tokens)
        assert k_cache[b, len(tokens) :].isnan().all()


def test_cache_with_queries_to_the_values() -> None:
    case = CachedCase(new=(2, 2), dim_v=12)
    k_cache, v_cache, _ = case.caches()
    qv = normal(2, 3, 4, 12, seed=8)
    out = flash_attn_with_kvcache(**arguments(case, k_cache, v_cache), qv=qv, causal=True)
    for b, (k, v) in enumerate(zip(*case.grown(), strict=True)):
        long = torch.cat([case.q[b], qv[b]], -1), torch.cat([k, v], -1)
        assert_same(out[b], plain_attention(*long, v, causal=True)[0])


def test_combine() -> None:
    out_partial = normal(3, 2, 5, 4, 8, seed=1).float()
    lse_partial = normal(3, 2, 5, 4, seed=2).float()
    lse_partial[1:, 0] = -torch.inf
    lse_partial[:, 1, 0] = -torch.inf
    out, lse = flash_attn_combine(out_partial, lse_partial, out_dtype=torch.bfloat16)
    assert out.dtype == torch.bfloat16 and out.shape == (2, 5, 4, 8)
    weights = lse_partial.exp()
    total = weights.sum(0)
    exact = (weights[..., None] * out_partial).sum(0) / total.clamp_min(1e-30)[..., None]
    torch.testing.assert_close(out.float(), exact, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(lse, total.log(), rtol=1e-5, atol=1e-6)
    assert (out[1, 0] == 0).all() and (lse[1, 0] == -torch.inf).all()
    into = torch.empty(2, 5, 4, 8)
    assert flash_attn_combine(out_partial, lse_partial, into)[0] is into
    torch.testing.assert_close(into, exact, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="lse_partial: must be a tensor"):
        flash_attn_combine(out_partial, lse_partial[0])
    with pytest.raises(ValueError, match="out_partial: must be a tensor"):
        flash_attn_combine(out_partial[0], lse_partial[0])


def test_scheduler_metadata_is_ignored() -> None:
    case = CACHED["append"]
    metadata = get_scheduler_metadata(2, 3, 12, 4, 2, 8, integers(3, 7), causal=True)
    outs = []
    for extra in ({}, {"scheduler_metadata": metadata, "num_splits": 3}):
        keywords, _ = cached_arguments(case)
        outs.append(flash_attn_with_kvcache(**keywords, **extra))
    assert torch.equal(*outs)


def test_fp8_is_refused() -> None:
    q, k, v = (x.detach().float() for x in draw())
    with pytest.raises(NotImplementedError, match="k_descale: fp8 is not supported"):
        flash_attn_func(q, k, v, k_descale=torch.ones(2, 2))
    with pytest.raises(TypeError, match="query: must be float64"):
        flash_attn_func(*(x.to(torch.float8_e4m3fn) for x in (q, k, v)))


def test_pages_have_flash_attn_3s_name_in_messages() -> None:
    keywords, _ = cached_arguments(CachedCase(page_size=4))
    keywords["cache_seqlens"] = integers(3, 13)
    with pytest.raises(RuntimeError, match="page_table: 3 pages of 4 tokens hold 12"):
        flash_attn_with_kvcache(**keywords)
