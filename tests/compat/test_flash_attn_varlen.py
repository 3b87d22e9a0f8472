"""flash_attn 2's packed functions, sequence by sequence against the formula written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compat.helpers import assert_same, integers, normal
from compat.plain_attention import plain_attention, sequences
from torch import Tensor

from fused_attention.compat.flash_attn import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)

CU_Q, CU_K = integers(0, 4, 4, 9, 10), integers(0, 6, 9, 9, 15)
SLOPES = torch.tensor([[0.3, 0.05], [0.8, 0.1], [0.2, 0.2], [0.4, 0.9]])
FEATURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "causal": ({"causal": True}, {"causal": True}),
    "window": ({"window_size": (2, 1)}, {"window": (2, 1)}),
    "window, tensor": ({"window_size": torch.tensor([0, 3])}, {"window": (0, 3)}),
    "softcap and scale": ({"softcap": 1.5, "softmax_scale": 0.4}, {"softcap": 1.5, "scale": 0.4}),
    "ALiBi": ({"alibi_slopes": SLOPES[0]}, {"slopes": SLOPES[0]}),
    "ALiBi per sequence": (
        {"alibi_slopes": SLOPES, "causal": True},
        {"slopes": SLOPES, "causal": True},
    ),
}


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """Four sequences, two heads on one, 12 and 16 rows: the last of them belong to no sequence."""
    q, k, v = normal(12, 2, 8, seed=1), normal(16, 1, 8, seed=2), normal(16, 1, 8, seed=3)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def plain_packed(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, **plain: Any
) -> Any:
    outs, lses = [], []
    for b, (rows, keys) in enumerate(zip(sequences(CU_Q), sequences(CU_K), strict=True)):
        own = slopes[b] if slopes is not None and slopes.dim() == 2 else slopes
        out, lse = plain_attention(q[rows], k[keys], v[keys], slopes=own, **plain)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses, dim=1)


@pytest.mark.parametrize("name", FEATURES)
def test_out_lse_and_gradients(name: str) -> None:
    options, plain = FEATURES[name]
    q, k, v = draw()
    arguments = q, k, v, CU_Q, CU_K, 5, 6
    out, lse, pattern = flash_attn_varlen_func(*arguments, return_attn_probs=True, **options)
    expected, expected_lse = plain_packed(q, k, v, **plain)
    assert_same(out[:10], expected)
    assert_same(lse[:, :10], expected_lse)
    assert not out[10:].any() and (lse[:, 10:] == -torch.inf).all() and pattern.numel() == 0
    assert torch.equal(flash_attn_varlen_func(*arguments, **options), out)
    found = torch.autograd.grad(out.square().sum(), (q, k, v))
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    for actual, exact in zip(found, wanted, strict=True):
        assert_same(actual, exact)


def test_positional_order() -> None:
    q, k, v = (x.detach() for x in draw())
    tail = (0.0, 0.3, True, (2, 5), 1.5, SLOPES, True, False)
    expected = plain_packed(q, k, v, SLOPES, scale=0.3, causal=True, window=(2, 0), softcap=1.5)[0]
    assert_same(flash_attn_varlen_func(q, k, v, CU_Q, CU_K, 5, 6, *tail, None)[:10], expected)
    kv = torch.stack([k, v], dim=1)
    assert_same(flash_attn_varlen_kvpacked_func(q, kv, CU_Q, CU_K, 5, 6, *tail)[:10], expected)


def test_stacked_tensors() -> None:
    qkv = normal(10, 3, 2, 8).requires_grad_()
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(1))
    out = flash_attn_varlen_func(q, k, v, CU_Q, CU_Q, 5, 5, causal=True)
    stacked = flash_attn_varlen_qkvpacked_func(qkv, CU_Q, 5, causal=True)
    assert torch.equal(stacked, out)
    (grad,) = torch.autograd.grad(stacked.square().sum(), qkv)
    assert_same(grad, torch.stack(torch.autograd.grad(out.square().sum(), (q, k, v)), dim=1))


def test_lengths_may_be_tensors_of_any_integer_dtype() -> None:
    q, k, v = (x.detach() for x in draw())
    expected = flash_attn_varlen_func(q, k, v, CU_Q, CU_K, 5, 6, causal=True)
    lengths = CU_Q.long(), CU_K.long(), torch.tensor(5), torch.tensor(6)
    assert torch.equal(flash_attn_varlen_func(q, k, v, *lengths, causal=True), expected)


def paged(tokens: Tensor, cu_seqlens: Tensor, page_size: int) -> tuple[Tensor, Tensor]:
    """The packed tokens on pages in no order, NaN and wrong page numbers where nothing may look."""
    lengths = cu_seqlens.diff().tolist()
    columns = max(-(-length // page_size) for length in lengths) + 1
    order = torch.randperm(columns * len(lengths), generator=torch.Generator().manual_seed(0))
    pages = torch.full((len(order), page_size, *tokens.shape[1:]), torch.nan, dtype=tokens.dtype)
    table = torch.full((len(lengths), columns), -7, dtype=torch.int32)
    for b, rows in enumerate(sequences(cu_seqlens)):
        for place, token in enumerate(range(rows.start, rows.stop)):
            page = int(order[b * columns + place // page_size])
            table[b, place // page_size] = page
            pages[page, place % page_size] = tokens[token].detach()
    return pages, table


@pytest.mark.parametrize("page_size", [1, 3, 4, 16])
@pytest.mark.parametrize("name", ["full", "causal", "window", "ALiBi per sequence"])
def test_pages(name: str, page_size: int) -> None:
    options, _ = FEATURES[name]
    q, k, v = draw()
    wanted = flash_attn_varlen_func(q, k, v, CU_Q, CU_K, 5, 6, return_attn_probs=True, **options)
    (k_pages, table), (v_pages, _) = paged(k, CU_K, page_size), paged(v, CU_K, page_size)
    arguments = q, k_pages.requires_grad_(), v_pages.requires_grad_(), CU_Q, CU_K, 5, 6
    found = flash_attn_varlen_func(*arguments, return_attn_probs=True, block_table=table, **options)
    assert_same(found[0], wanted[0])
    assert_same(found[1], wanted[1])
    out = flash_attn_varlen_func(*arguments, block_table=table, **options)
    assert torch.equal(out, found[0])
    dq, dk_pages = torch.autograd.grad(out.square().sum(), (q, k_pages))
    exact_dq, exact_dk = torch.autograd.grad(wanted[0].square().sum(), (q, k))
    assert_same(dq, exact_dq)
    expected_pages, _ = paged(exact_dk, CU_K, page_size)
    assert_same(dk_pages, expected_pages.nan_to_num())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"cu_seqlens_q": integers(1, 4)}, ValueError, "cu_seqlens_q: must start at 0"),
        (
            {"cu_seqlens_q": integers(0, 99), "max_seqlen_q": 99},
            ValueError,
            "cu_seqlens_q: must end within",
        ),
        ({"cu_seqlens_k": integers(0, 4, 9)}, ValueError, "cu_seqlens_k: must have 2 entries"),
        ({"cu_seqlens_q": None}, TypeError, "cu_seqlens_q: must be a torch.Tensor"),
        ({"cu_seqlens_q": torch.tensor([0.0, 9.0])}, TypeError, "must be an integer tensor"),
        ({"max_seqlen_q": 3}, ValueError, "max_seqlen_q: must be at least the longest"),
        ({"q": torch.ones(2, 12, 2, 8)}, ValueError, r"q: must be a tensor \[total, heads"),
        ({"block_table": integers(0, 1)}, ValueError, "block_table: must be a tensor"),
    ],
)
def test_mistakes(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    q, k, v = (x.detach().float() for x in draw())
    right = {
        "q": q,
        "k": k,
        "v": v,
        "cu_seqlens_q": integers(0, 10),
        "cu_seqlens_k": integers(0, 15),
        "max_seqlen_q": 10,
        "max_seqlen_k": 15,
    }
    if "block_table" in wrong:
        right |= {"k": torch.ones(3, 5, 1, 8), "v": torch.ones(3, 5, 1, 8)}
    with pytest.raises(error, match=message):
        flash_attn_varlen_func(**{**right, **wrong})


def test_mistakes_with_pages() -> None:
    q, pages, one = torch.ones(2, 1, 8), torch.ones(3, 4, 1, 8), integers(0, 2)
    arguments = q, pages, pages, one
    with pytest.raises(RuntimeError, match="block_table: 1 pages of 4 tokens hold 4 of a sequence"):
        flash_attn_varlen_func(
            *arguments, integers(0, 5), 2, 5, block_table=torch.zeros(1, 1).int()
        )
    with pytest.raises(
        ValueError, match=r"block_table: the pages in use must be in \[0, 3\), got 3"
    ):
        table = torch.full((1, 1), 3, dtype=torch.int32)
        flash_attn_varlen_func(*arguments, integers(0, 4), 2, 4, block_table=table)
