"""Pages are taken when they are needed, given back, and shared until one of the users writes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fused_attention import Band
from fused_attention.nn import KVCache, PagedKVCache

HEADS, DIM = 2, 4


def paged(batch: int = 3, room: int = 12, page_size: int = 4, **options: int) -> PagedKVCache:
    return PagedKVCache(batch, HEADS, room, DIM, page_size=page_size, **options)


def tokens(count: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    key, value = torch.randn(2, batch, HEADS, count, DIM)
    return key, value


def both(batch: int = 3) -> tuple[KVCache, PagedKVCache]:
    return KVCache(batch, HEADS, 12, DIM), paged(batch)


def assert_alike(plain: KVCache, pages: PagedKVCache) -> None:
    """They hold the same: seen by appending nothing."""
    nothing = tokens(0, plain.key.shape[0])
    stored = zip(plain.append(*nothing), pages.append(*nothing), strict=True)
    lengths = [plain.length] * len(plain.key) if plain.lengths is None else plain.lengths.tolist()
    assert pages.length == max(lengths)
    for one, other in stored:
        for row, length in enumerate(lengths):
            assert torch.equal(one[row, :, :length], other[row, :, :length])


def test_holds_what_a_plain_cache_holds() -> None:
    plain, pages = both()
    for count, new_lengths in ((3, None), (5, torch.tensor([5, 0, 2])), (1, None), (2, None)):
        given = tokens(count)
        for cache in (plain, pages):
            cache.append(*given, new_lengths)
        assert_alike(plain, pages)
    for cache in (plain, pages):
        cache.crop(7)
    assert_alike(plain, pages)
    for cache in (plain, pages):
        cache.reorder(torch.tensor([2, 0, 0]))
    assert_alike(plain, pages)
    given = tokens(1)
    for cache in (plain, pages):
        cache.append(*given)
    assert_alike(plain, pages)


def test_attends_as_a_plain_cache_does() -> None:
    plain, pages = both()
    band = Band.sliding(4)
    for count in (6, 1, 1, 3):
        query = torch.randn(3, 2 * HEADS, count, DIM)
        given = tokens(count)
        out = [cache.attend(query, *given, band) for cache in (plain, pages)]
        torch.testing.assert_close(*out)
    assert_alike(plain, pages)


def test_takes_only_the_pages_that_it_needs() -> None:
    cache = paged(pages=4)
    cache.append(*tokens(6), torch.tensor([6, 1, 0]))
    assert cache.pages_in_use == 3
    cache.append(*tokens(1))
    assert cache.pages_in_use == 4 and cache.lengths.tolist() == [7, 2, 1]
    before = cache.key.clone()
    with pytest.raises(ValueError, match="pages: must be 1 more for these tokens, got 4"):
        cache.append(*tokens(2))
    assert cache.lengths.tolist() == [7, 2, 1] and torch.equal(cache.key, before)
    cache.crop(4)
    assert cache.pages_in_use == 3
    cache.crop(0)
    assert cache.pages_in_use == 0 and cache.length == 0 and cache.lengths is None


def test_equal_rows_share_their_pages_until_one_writes() -> None:
    cache = paged(pages=5)
    key, value = tokens(6)
    cache.append(key[:, :, :3], value[:, :, :3])
    cache.reorder(torch.tensor([1, 1, 1]))
    assert cache.pages_in_use == 1
    new = tokens(1)
    stored, _ = cache.append(*new)  # two copies, the last user keeps the page
    assert cache.pages_in_use == 3
    for row in range(3):
        assert torch.equal(stored[row, :, :3], key[1, :, :3])
        assert torch.equal(stored[row, :, 3:], new[0][row])
    cache.reorder(torch.tensor([0, 0, 2]))
    assert cache.pages_in_use == 2
    cache.append(*tokens(1))  # a new page each, the full ones stay shared
    assert cache.pages_in_use == 5


def test_repr_and_mistakes() -> None:
    cache = paged()
    cache.append(*tokens(5))
    assert repr(cache) == (
        "PagedKVCache(batch=3, heads=2, length=5 of 12, pages=6 of 9 of 4 tokens, head_dim=4, "
        "torch.float32, cpu)"
    )
    with pytest.raises(ValueError, match="cache: has room for 12 tokens, got 13"):
        cache.append(*tokens(8))
    with pytest.raises(ValueError, match=r"cache: takes keys and values of shape \(3, 2, new"):
        cache.append(*tokens(1, batch=2))
    with pytest.raises(ValueError, match="cache: holds torch.float32, got torch.float64"):
        cache.append(*(x.double() for x in tokens(1)))
    with pytest.raises(ValueError, match=r"length: must be in \[0, 5\], got 6"):
        cache.crop(6)
    with pytest.raises(RuntimeError, match="cache: carries no gradients"):
        cache.append(*(x.requires_grad_() for x in tokens(1)))
    for wrong in ({"page_size": 0}, {"room": 0}, {"pages": 0}):
        with pytest.raises(ValueError, match=": must be at least 1, got 0"):
            paged(**wrong)


def test_copies_of_a_shared_page_need_room() -> None:
    cache = paged(pages=2)
    cache.append(*tokens(3), torch.tensor([3, 0, 0]))
    cache.reorder(torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="pages: must be 1 more for these tokens, got 2"):
        cache.append(*tokens(1))
    assert cache.length == 3 and cache.pages_in_use == 1
    cache.append(*tokens(1), torch.tensor([1, 0, 0]))
    assert cache.pages_in_use == 2
