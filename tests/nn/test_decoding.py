"""What MultiHeadAttention can do beyond nn.MultiheadAttention: band, heads, rotary, cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from door_reports import door_reports
from torch import Tensor, nn

from fused_attention import Band
from fused_attention.masks import UNBOUNDED
from fused_attention.nn import KVCache, MultiHeadAttention, Rotary
from fused_attention.nn.mask_terms import MaskTerms, intersection

DIM, HEADS = 16, 4


def module(**options: Any) -> MultiHeadAttention:
    torch.manual_seed(0)
    return MultiHeadAttention(DIM, HEADS, batch_first=True, dtype=torch.float64, **options)


def tokens(length: int = 7, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64)


def attend(attention: MultiHeadAttention, x: Tensor, **call: Any) -> Tensor:
    return attention(x, x, x, need_weights=False, **call)[0]


def widened(attention: MultiHeadAttention) -> MultiHeadAttention:
    """The same attention, with a copy of the key and value heads for each query head."""
    wide, dim = module(add_bias_kv=attention.bias_k is not None), attention.head_dim
    kv = attention.num_kv_heads * dim
    for name, parameter in attention.named_parameters():
        if name.startswith("in_proj"):
            q, k, v = parameter.split((DIM, kv, kv))
            repeat = [
                x.unflatten(0, (-1, dim)).repeat_interleave(2, 0).flatten(0, 1) for x in (k, v)
            ]
            parameter = torch.cat((q, *repeat))
        elif name.startswith("bias"):
            parameter = parameter.unflatten(2, (-1, dim)).repeat_interleave(2, 2).flatten(2)
        wide.get_parameter(name).data.copy_(parameter.data)
    return wide


@pytest.mark.parametrize("add_bias_kv", [False, True])
def test_grouped_heads(add_bias_kv: bool) -> None:
    grouped = module(num_kv_heads=2, add_bias_kv=add_bias_kv)
    wide, x = widened(grouped), tokens()
    for found, exact in zip(grouped(x, x, x), wide(x, x, x), strict=True):
        torch.testing.assert_close(found, exact)
    assert grouped.get_parameter("in_proj_weight").shape == (DIM + 2 * 8, DIM)


def test_grouped_heads_of_other_widths() -> None:
    grouped = module(num_kv_heads=1, kdim=6, vdim=10)
    shapes = {name: tuple(p.shape) for name, p in grouped.named_parameters()}
    assert shapes["k_proj_weight"] == (4, 6) and shapes["v_proj_weight"] == (4, 10)
    key, value = torch.randn(2, 5, 6).double(), torch.randn(2, 5, 10).double()
    assert grouped(tokens(), key, value)[0].shape == (2, 7, DIM)


BANDS = {
    "causal": Band.causal(),
    "window": Band.window(2, 1),
    "sliding": Band.sliding(3),
    "top left": Band.causal(0),
}


@pytest.mark.parametrize("added", [False, True], ids=["", "added keys"])
@pytest.mark.parametrize("name", BANDS)
def test_band_is_its_mask(name: str, added: bool) -> None:
    band = BANDS[name]
    with_band = module(band=band, add_bias_kv=added, add_zero_attn=added)
    without = module(add_bias_kv=added, add_zero_attn=added)
    without.load_state_dict(with_band.state_dict())
    query, key = tokens(5), tokens(7)
    mask = ~band.mask(5, 7)
    found, exact = with_band(query, key, key), without(query, key, key, attn_mask=mask)
    torch.testing.assert_close(found, exact)


def test_every_mask_applies() -> None:
    attention, plain, x = module(band=Band.sliding(5)), module(), tokens(9)
    bias = torch.randn(9, 9, dtype=torch.float64)
    lengths, left_padding = torch.tensor([6, 9]), torch.arange(9) < torch.tensor([[0], [2]])
    found = attention(x, x, x, key_padding_mask=left_padding, attn_mask=bias, kv_lengths=lengths)
    hidden = ~Band.sliding(5).mask(9, 9, lengths) | left_padding[:, None, None]
    mask = (bias + torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)).expand(
        -1, HEADS, -1, -1
    )
    out, weights = plain(x, x, x, attn_mask=mask.reshape(-1, 9, 9))
    torch.testing.assert_close(found, (out, weights))


def test_masks_that_are_bands_join_the_band() -> None:
    """A large causal mask costs nothing beside a window: it becomes part of the band."""
    attention = module(band=Band.window(16, 16))
    x = tokens(64, batch=3)
    causal = torch.ones(64, 64, dtype=torch.bool).triu(1)
    padding = torch.arange(64) >= torch.tensor([[64], [30], [3]])
    with door_reports() as lines:
        attend(attention, x, attn_mask=causal, key_padding_mask=padding)
    assert len(lines) == 1 and "nn.MultiHeadAttention -> cpu" in lines[0]
    assert "band window(16, 0, offset=0)" in lines[0] and "kv_lengths" in lines[0]
    assert "bias" not in lines[0]


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2, "rotary": Rotary()}], ids=["", "GQA"])
@pytest.mark.parametrize("added", [False, True], ids=["", "added keys"])
def test_token_by_token_is_all_at_once(options: dict[str, Any], added: bool) -> None:
    attention = module(band=Band.causal(), add_bias_kv=added, add_zero_attn=added, **options).eval()
    x = tokens(9)
    with torch.no_grad():
        exact = attend(attention, x)
        cache = attention.new_cache(2, 12)
        steps = [attend(attention, part, cache=cache) for part in x.split((4, 1, 1, 3), 1)]
        torch.testing.assert_close(torch.cat(steps, 1), exact)
        cache.crop(5)
        torch.testing.assert_close(attend(attention, x[:, 5:], cache=cache), exact[:, 5:])


def test_masks_of_a_cache_count_its_keys() -> None:
    attention, x = module().eval(), tokens(6)
    padding = torch.arange(6) < torch.tensor([[0], [2]])  # to the left, as in generation
    with torch.no_grad():
        cache = attention.new_cache(2, 6)
        attend(attention, x[:, :4], cache=cache)
        last = attend(attention, x[:, 4:], cache=cache, key_padding_mask=padding)
        exact, _ = attention(x[:, 4:], x, x, key_padding_mask=padding)
    torch.testing.assert_close(last, exact)


def test_positions() -> None:
    attention = module(rotary=Rotary(), band=Band.causal())
    x = tokens(5)
    torch.testing.assert_close(
        attend(attention, x, positions=torch.arange(40, 45)), attend(attention, x)
    )
    spread = torch.tensor([[0, 1, 2, 3, 4], [0, 2, 4, 8, 16]])
    out = attend(attention, x, positions=spread)
    torch.testing.assert_close(out[0], attend(attention, x)[0])
    assert not torch.allclose(out[1, 1:], attend(attention, x)[1, 1:])


def test_a_cache_lives_where_the_parameters_do() -> None:
    attention = MultiHeadAttention(DIM, HEADS, num_kv_heads=2, dtype=torch.bfloat16)
    cache = attention.new_cache(3, 8)
    assert cache.key.shape == (3, 2, 8, 4) and cache.key.dtype == torch.bfloat16
    assert attention.new_cache(1, 1, dtype=torch.float32).key.dtype == torch.float32


COMPILED: dict[str, Callable[[MultiHeadAttention, Tensor], Tensor]] = {
    "out": lambda attention, x: attend(attention, x),
    "weights": lambda attention, x: attention(x, x, x)[1],
    "padding": lambda attention, x: attend(
        attention, x, key_padding_mask=torch.arange(x.shape[1]) >= torch.tensor([[5], [3]])
    ),
}


@pytest.mark.parametrize(
    ("name", "dynamic"), [("out", True), ("weights", False), ("padding", True)]
)
def test_compiles_in_one_graph(name: str, dynamic: bool) -> None:
    attention = module(num_kv_heads=2, band=Band.causal(), rotary=Rotary(), add_zero_attn=True)
    function = COMPILED[name]
    torch.compiler.reset()
    fast = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (6, 9):
        x = tokens(length).requires_grad_()
        found, exact = fast(attention, x), function(attention, x)
        torch.testing.assert_close(found, exact)
        grads = (torch.autograd.grad(y.square().sum(), x) for y in (found, exact))
        torch.testing.assert_close(*grads)
    torch.compiler.reset()


def test_decoding_compiles() -> None:
    attention = module(band=Band.causal(), rotary=Rotary()).eval()

    def step(x: Tensor, cache: KVCache) -> Tensor:
        return attend(attention, x, cache=cache)

    torch.compiler.reset()
    fast = torch.compile(step, fullgraph=True, backend="aot_eager")
    x = tokens(5)
    with torch.no_grad():
        cache = attention.new_cache(2, 8)
        steps = [fast(token, cache) for token in x.split(1, 1)]
        torch.testing.assert_close(torch.cat(steps, 1), attend(attention, x))
    torch.compiler.reset()


def test_exports_with_a_free_length() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = module(band=Band.sliding(4), num_kv_heads=2)

        def forward(self, x: Tensor) -> Tensor:
            return attend(self.attention, x)

    block, length = Block(), torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(block, (tokens(9),), dynamic_shapes=({1: length},))
    longer = tokens(31)
    torch.testing.assert_close(program.module()(longer), block(longer))


@pytest.mark.parametrize("one", [Band.full(), Band.causal(), Band.window(2, 3), Band(1, 0, -2)])
@pytest.mark.parametrize("other", [Band.causal(0), Band.window(None, 2), Band(0, UNBOUNDED, 1)])
def test_intersection_is_both_masks(one: Band, other: Band) -> None:
    for len_q, len_k in ((4, 6), (6, 4), (1, 5)):
        both = one.mask(len_q, len_k) & other.mask(len_q, len_k)
        found = intersection(one, other, len_q, len_k)
        if found is None:
            assert not both.any()
        else:
            assert torch.equal(found.mask(len_q, len_k), both)


def test_terms_without_a_mask_hide_nothing() -> None:
    assert MaskTerms().hidden(3, 4, torch.device("cpu")) is None
