"""vmap over attention gives what the rows give one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_case import AttentionCase
from torch import Tensor
from torch.func import grad, vmap

from fused_attention import Band, attention, attention_varlen, autograd
from fused_attention.backends import reference
from fused_attention.backends.call import Call

SIZE = 3
TINY = {"batch": 2, "heads_q": 2, "len_q": 4, "len_k": 5, "head_dim": 3, "dtype": torch.float64}

CASES = (
    AttentionCase("plain", **TINY),
    AttentionCase("grouped_causal", **{**TINY, "heads_q": 4}, heads_kv=2, band=Band.causal()),
    AttentionCase("bias_for_all", **TINY, bias="1hqk"),
    AttentionCase("bias_per_batch", **TINY, bias="b1qk"),
    AttentionCase("softcap_slopes", **TINY, softcap=2.0, alibi="h"),
    AttentionCase("slopes_per_batch", **TINY, alibi="bh"),
    AttentionCase("lengths", **TINY, kv_lengths=(5, 2), band_offsets=(0, 2), band=Band.causal()),
    AttentionCase("sinks", **TINY, sinks=True),
    AttentionCase("dropout", **TINY, dropout_p=0.4),
    AttentionCase("packed", **TINY, seq_lens_q=(2, 3), seq_lens_k=(4, 1), band=Band.causal()),
    AttentionCase("no_batch", **{**TINY, "batch": 0}),
)
DIFFERENTIABLE = ("query", "key", "value", "bias", "sinks")


def call(tensors: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    function = attention_varlen if "cu_seqlens_q" in options else attention
    return function(**tensors, **options, return_lse=True)  # type: ignore[operator]


def tensors_and_options(
    case: AttentionCase, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    inputs = case.make(seed)
    options = dict(inputs.options)
    tensors = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
    names = ("bias", "alibi_slopes", "sinks", "kv_lengths", "band_offsets")
    tensors |= {name: options.pop(name) for name in names if name in options}
    return tensors, options


def loss(tensors: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    out, lse = call(tensors, options)
    return out.square().sum() + lse.masked_fill(lse.isinf(), 0.0).sin().sum()


def batched(case: AttentionCase, names: set[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The case's tensors, those named with SIZE different rows in front."""
    first, options = tensors_and_options(case)
    rows = [tensors_and_options(case, seed)[0] for seed in range(SIZE)]
    return {
        name: torch.stack([row[name] for row in rows]) if name in names else tensor
        for name, tensor in first.items()
    }, options


def row(tensors: dict[str, Tensor], names: set[str], index: int) -> dict[str, Tensor]:
    return {name: t[index] if name in names else t for name, t in tensors.items()}


def choices(case: AttentionCase) -> list[set[str]]:
    """Which tensors have rows: all, only the queries, everything but the operands."""
    names = set(tensors_and_options(case)[0])
    operands = {"query", "key", "value"}
    return [chosen for chosen in (names, {"query"}, names - operands) if chosen]


BATCHINGS = [(case, names) for case in CASES for names in choices(case)]
IDS = [f"{case}-{'+'.join(sorted(names))}" for case, names in BATCHINGS]


@pytest.mark.parametrize(("case", "names"), BATCHINGS, ids=IDS)
def test_vmap_is_a_loop(case: AttentionCase, names: set[str]) -> None:
    tensors, options = batched(case, names)
    in_dims = ({name: 0 if name in names else None for name in tensors},)
    out, lse = vmap(lambda given: call(given, options), in_dims=in_dims)(tensors)
    for index in range(SIZE):
        alone = call(row(tensors, names, index), options)
        torch.testing.assert_close((out[index], lse[index]), alone, equal_nan=True)


@pytest.mark.parametrize(("case", "names"), BATCHINGS, ids=IDS)
def test_per_sample_gradients_are_a_loop(case: AttentionCase, names: set[str]) -> None:
    tensors, options = batched(case, names)
    variables = {name: tensors[name] for name in DIFFERENTIABLE if name in tensors}
    others = {name: tensors[name] for name in tensors if name not in variables}

    def gradients(given: dict[str, Tensor], rest: dict[str, Tensor]) -> dict[str, Tensor]:
        return grad(lambda wanted: loss({**wanted, **rest}, options))(given)

    in_dims = tuple(
        {name: 0 if name in names else None for name in group} for group in (variables, others)
    )
    together = vmap(gradients, in_dims=in_dims)(variables, others)
    for index in range(SIZE):
        alone = gradients(row(variables, names, index), row(others, names, index))
        picked = {name: g[index] for name, g in together.items()}
        torch.testing.assert_close(picked, alone, equal_nan=True)


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_any_dimension_but_the_last_can_be_vmapped(dim: int) -> None:
    query = torch.randn(2, 2, 4, 3)
    stacked = torch.stack([query, query + 1], dim=dim)
    out = vmap(lambda q: attention(q, query, query), in_dims=dim)(stacked)
    torch.testing.assert_close(out[1], attention(query + 1, query, query))


def test_last_dimension_is_refused_plainly() -> None:
    query = torch.randn(1, 1, 4, 8)
    stacked = torch.stack([query, query], dim=-1)
    with pytest.raises(ValueError, match="^query: must be contiguous in its last dimension"):
        vmap(lambda q: attention(q, query, query), in_dims=-1)(stacked)


def test_nested_vmap() -> None:
    query, key = torch.randn(2, 3, 1, 2, 4, 5), torch.randn(3, 1, 2, 6, 5)
    out = vmap(vmap(attention, in_dims=(0, 0, 0)), in_dims=(0, None, None))(query, key, key)
    for outer in range(2):
        for inner in range(3):
            alone = attention(query[outer, inner], key[inner], key[inner])
            torch.testing.assert_close(out[outer, inner], alone)


def test_dense_problems_run_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    class Counting:
        def forward(self, call: Call) -> tuple[Tensor, Tensor]:
            batches.append(call.query.shape[0])
            return reference.forward(call)

    monkeypatch.setattr(autograd, "get", lambda name: Counting())
    query = torch.randn(5, 2, 1, 4, 3)
    vmap(lambda q: attention(q, q, q))(query)
    assert batches == [10]
    batches.clear()
    vmap(lambda q: attention(q, q, q, dropout_p=0.5, dropout_seed=1))(query)
    assert batches == [2] * 5


def test_backward_operator_alone_keeps_the_shape_of_a_broadcast_bias() -> None:
    x, bias = torch.randn(SIZE, 2, 1, 4, 4), torch.randn(1, 1, 4, 4)
    scalars = (4, 4, 0.5, 0.0, 1 << 30, 1 << 30, 0, 0.0, False, "reference", True)

    def backward(x: Tensor) -> tuple[Tensor, ...]:
        lse = x.sum(dim=-1)
        return autograd.backward_op(x, lse, x, x, x, bias, *(None,) * 7, x, lse, *scalars)

    together = vmap(backward)(x)
    for index in range(SIZE):
        alone = backward(x[index])
        torch.testing.assert_close(tuple(grad[index] for grad in together[:4]), alone[:4])
    assert together[3].shape == (SIZE, *bias.shape)


def test_no_rows_at_all() -> None:
    query = torch.randn(0, 2, 2, 4, 5)
    for options in ({}, {"dropout_p": 0.5, "dropout_seed": 1}):
        out = vmap(lambda q, options=options: attention(q, q, q, **options))(query)
        assert out.shape == query.shape


def test_drawn_dropout_obeys_vmaps_randomness() -> None:
    query = torch.randn(1, 1, 8, 4).expand(SIZE, -1, -1, -1, -1).contiguous()

    def dropped(q: Tensor) -> Tensor:
        return attention(q, q, q, dropout_p=0.5)

    with pytest.raises(RuntimeError, match="randomness"):
        vmap(dropped)(query)
    same = vmap(dropped, randomness="same")(query)
    assert torch.equal(same[0], same[1])
    different = vmap(dropped, randomness="different")(query)
    assert not torch.equal(different[0], different[1])
