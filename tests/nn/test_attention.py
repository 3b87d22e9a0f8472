"""The attention of a block: its formula, packed, padded, turned, across, and step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from budget import assert_same
from torch import Tensor

from fused_attention import Band
from fused_attention.decode_problem import PREFILL
from fused_attention.formulas import AttentionTerms, dense_forward
from fused_attention.nn import Attention, Rotary, Sequences, alibi_slopes, pack, unpack

DIM, HEADS, LENGTH = 24, 4, 9
LENGTHS = torch.tensor([4, LENGTH, 1])
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"band": Band.causal()},
    "grouped window": {"kv_heads": 2, "band": Band.sliding(3)},
    "wide heads, no bias": {"head_dim": 10, "bias": False, "out_bias": False, "kv_heads": 1},
    "alibi, scale": {"alibi": True, "scale": 0.7, "band": Band.causal()},
}


def module(**options: Any) -> Attention:
    torch.manual_seed(0)
    return Attention(DIM, HEADS, dtype=torch.float64, **options).eval()


def tokens(length: int = LENGTH, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, DIM, dtype=torch.float64, generator=generator)


def formula(layer: Attention, x: Tensor, memory: Tensor | None = None) -> Tensor:
    """Each step by itself, heads one after the other in the rows of in_proj."""
    memory = x if memory is None else memory
    sizes = [layer.heads, layer.kv_heads, layer.kv_heads]
    weights = layer.in_proj.weight.unflatten(0, (-1, layer.head_dim)).split(sizes)
    q, k, v = (
        torch.einsum("bld,hed->bhle", states, weight)
        for states, weight in zip((x, memory, memory), weights, strict=True)
    )
    if layer.in_proj.bias is not None:
        biases = layer.in_proj.bias.view(-1, layer.head_dim).split(sizes)
        q, k, v = (heads + b[:, None] for heads, b in zip((q, k, v), biases, strict=True))
    slopes = alibi_slopes(layer.heads) if layer.slopes is not None else None
    out, _ = dense_forward(q, k, v, AttentionTerms(layer.band, layer.scale, alibi_slopes=slopes))
    return layer.out_proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", KINDS)
def test_is_its_formula(name: str) -> None:
    layer, x = module(**KINDS[name]), tokens()
    assert_same(layer(x), formula(layer, x))


def test_cross_attention() -> None:
    layer, x, states = module(kv_heads=2), tokens(), tokens(5)
    memory = layer.remember(states)
    assert memory.key.shape == (3, 5, 2, DIM // HEADS)
    assert_same(layer(x, memory=memory), formula(layer, x, states))


@pytest.mark.parametrize("name", KINDS)
def test_padding_and_packing_change_nothing(name: str) -> None:
    layer, x = module(**KINDS[name]), tokens()
    rotary = Rotary(100.0)
    sequences, padded = Sequences.packed_from(LENGTHS), Sequences(LENGTHS)
    packed = pack(x, LENGTHS)

    def turned(of: Sequences, batch: Tensor) -> Tensor:
        rotation = rotary.rotation(of.positions(batch), layer.head_dim, batch.dtype)
        return layer(batch, of, rotation=rotation)

    alone = [turned(Sequences(), x[row : row + 1, :n])[0] for row, n in enumerate(LENGTHS)]
    assert_same(turned(sequences, packed), torch.cat(alone))
    poisoned = torch.where((torch.arange(LENGTH) < LENGTHS[:, None])[..., None], x, 1e6)
    assert_same(pack(turned(padded, poisoned), LENGTHS), torch.cat(alone))


def test_packed_cross_attention() -> None:
    layer, x, states = module(), tokens(), tokens(6)
    of_states = torch.tensor([6, 2, 3])
    memory = layer.remember(pack(states, of_states), Sequences.packed_from(of_states))
    out = layer(pack(x, LENGTHS), Sequences.packed_from(LENGTHS), memory=memory)
    dense = layer(x, memory=layer.remember(states, Sequences(of_states)))
    assert_same(out, pack(dense, LENGTHS))
    assert_same(unpack(out, LENGTHS, LENGTH)[1], dense[1])


@pytest.mark.parametrize("page_size", [None, 3])
@pytest.mark.parametrize("steps", [(1,) * LENGTH, (4, 1, 3, 1)], ids=str)
@pytest.mark.parametrize("name", [name for name in KINDS if "band" in KINDS[name]])
def test_a_cache_changes_nothing(name: str, steps: tuple[int, ...], page_size: int | None) -> None:
    layer, x = module(**KINDS[name]), tokens()
    rotary, parts = Rotary(100.0), []
    cache = layer.new_cache(3, LENGTH, page_size=page_size)
    with torch.no_grad():
        for part in x.split(steps, 1):
            positions = cache.positions(part.shape[1])
            rotation = rotary.rotation(positions, layer.head_dim, x.dtype)
            parts.append(layer(part, rotation=rotation, cache=cache))
        whole = layer(x, rotation=rotary.rotation(torch.arange(LENGTH), layer.head_dim, x.dtype))
    assert cache.length == LENGTH and cache.lengths is None
    assert_same(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize("name", [name for name in KINDS if "band" in KINDS[name]])
def test_rows_of_a_cache_may_differ(name: str, page_size: int | None) -> None:
    """Prompts of different lengths, two more tokens, more of different lengths, one more."""
    layer, rotary = module(**KINDS[name]), Rotary(100.0)
    first, last = torch.tensor([5, 20, 1]), torch.tensor([PREFILL + 2, 0, 3])
    x = tokens(64)
    cache = layer.new_cache(3, 64, page_size=page_size)
    given: list[list[Tensor]] = [[], [], []]
    found: list[list[Tensor]] = [[], [], []]
    at = 0
    for counts in (first, None, None, last, None):
        length = 1 if counts is None else int(counts.max())
        part, at = x[:, at : at + length], at + length
        positions = cache.positions(length)
        rotation = rotary.rotation(positions, layer.head_dim, x.dtype)
        with torch.no_grad():
            out = layer(part, Sequences(counts), rotation=rotation, cache=cache)
        for row in range(3):
            count = length if counts is None else int(counts[row])
            given[row].append(part[row, :count])
            found[row].append(out[row, :count])
    for row in range(3):
        sequence = torch.cat(given[row])[None]
        positions = torch.arange(sequence.shape[1])
        rotation = rotary.rotation(positions, layer.head_dim, x.dtype)
        assert_same(torch.cat(found[row]), layer(sequence, rotation=rotation)[0])
    assert cache.lengths is not None
    assert cache.lengths.tolist() == [5 + 3 + PREFILL + 2, 20 + 3, 1 + 3 + 3]


def test_gradients() -> None:
    layer, x = module(band=Band.causal(), kv_heads=2), tokens().requires_grad_()
    layer(x).square().sum().backward()
    found = [x.grad, *(p.grad for p in layer.parameters())]
    exact = torch.autograd.grad(formula(layer, x).square().sum(), [x, *layer.parameters()])
    for one, other in zip(found, exact, strict=True):
        assert_same(one, other)


def test_dropout_only_in_training() -> None:
    layer, x = module(dropout=0.5), tokens()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


MISTAKES: dict[str, dict[str, Any]] = {
    "kv_heads: must divide heads 4, got 3": {"kv_heads": 3},
    "kv_heads: must divide heads 4, got 0": {"kv_heads": 0},
    r"dropout: must be in \[0, 1\), got 1.0": {"dropout": 1.0},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_wrong_sizes(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(**MISTAKES[message])
    with pytest.raises(ValueError, match="dim: must be divisible by heads 5, or head_dim be giv"):
        Attention(DIM, 5)


def test_what_a_cache_cannot() -> None:
    layer = module(band=Band.causal(), dropout=0.1)
    cache = layer.new_cache(3, LENGTH)
    with pytest.raises(RuntimeError, match="cache: carries no gradients"):
        layer(tokens(), cache=cache)
    with torch.no_grad(), pytest.raises(ValueError, match="cache: takes rows of a batch, got pack"):
        layer(pack(tokens(), LENGTHS), Sequences.packed_from(LENGTHS), cache=cache)
    with torch.no_grad(), pytest.raises(RuntimeError, match="cache: goes with a model in eval"):
        layer.train()(tokens(), cache=cache)
    assert cache.length == 0
