"""The forward kernel by itself: memory that it touches, tile shapes, descriptors, packed heads."""

from __future__ import annotations

import pytest
import torch
from attention_case import AttentionCase
from shapes import CASES
from triton_interpreted.interpreter import OutOfBoundsError, only_memory_of
from triton_interpreted.kernel_calls import call_of, poisoned

from fused_attention.masks import Band
from fused_attention.triton_kernels import forward
from fused_attention.triton_kernels.forward import attention_forward
from fused_attention.triton_kernels.launch import Config
from fused_attention.triton_kernels.tiles import describable

HALF = torch.float16
BY_NAME = {case.name: case for case in CASES}
WIDE = {"len_q": 70, "len_k": 150, "head_dim": 40, "value_dim": 24, "dtype": HALF}


def forward_within_budget(case: AttentionCase, config: Config | None = None) -> None:
    """Outputs are NaN before, and no memory but that of the arguments may be touched."""
    inputs = case.make(0)
    call = call_of(inputs)
    out, lse = poisoned(call.empty_out()), poisoned(call.empty_lse())
    with only_memory_of(*call[:11], out, lse):
        attention_forward(call, out, lse, config)
    inputs.assert_forward(out, lse)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_touches_its_arguments_only(case):
    forward_within_budget(case.with_dtype(HALF))


def test_memory_outside_is_noticed():
    call = call_of(BY_NAME["plain"].make(0))
    out, lse = call.empty_out(), call.empty_lse()
    with (
        pytest.raises(Exception, match=OutOfBoundsError.__name__),
        only_memory_of(*call[:11], out, lse[:, :, :-1]),
    ):
        attention_forward(call, out, lse)


SHAPES = [Config(16, 32, 1, 1), Config(128, 32, 1, 1), Config(32, 128, 1, 1)]


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.block_q}x{c.block_kv}")
@pytest.mark.parametrize(
    "case",
    [
        AttentionCase("full", **WIDE),
        AttentionCase("causal", band=Band.causal(), **WIDE),
        AttentionCase("window", band=Band.window(20, 3, offset=33), bias="1hqk", **WIDE),
        AttentionCase("dropout", band=Band.window(50, 9), dropout_p=0.4, sinks=True, **WIDE),
        AttentionCase("packed", seq_lens_q=(3, 50), seq_lens_k=(70, 20), trailing=70, dtype=HALF),
    ],
    ids=str,
)
def test_any_shape_of_tiles(config, case):
    forward_within_budget(case, config)


DESCRIBED = [
    case.with_dtype(HALF)
    for case in CASES
    if all(map(describable, call_of(case.with_dtype(HALF).make(0))[1:3]))
]


@pytest.mark.parametrize("case", DESCRIBED, ids=str)
def test_by_descriptors(case):
    """What a GPU's TMA unit brings: tiles of [B, H, L, D], 0 beyond the tensor, no further mask."""
    forward_within_budget(case, Config(64, 64, 4, 1, use_descriptors=True))


def test_descriptors_serve_most_cases():
    names = {case.name for case in DESCRIBED}
    assert {"everything", "packed_lengths_differ", "kv_lengths", "layout_swapped"} <= names
    assert "dim_17" not in names and "layout_shared" not in names


PACKABLE = [
    AttentionCase("grouped", heads_q=6, heads_kv=2, len_q=9, len_k=70, band=Band.causal()),
    AttentionCase("one_query", heads_q=5, heads_kv=1, len_q=1, len_k=70, alibi="bh"),
    AttentionCase("terms", 2, 6, 2, 7, 40, bias="1hqk", sinks=True, dropout_p=0.3, softcap=2.0),
    AttentionCase("packed", heads_q=6, heads_kv=2, seq_lens_q=(5, 0, 17), trailing=3),
]


@pytest.mark.parametrize("case", PACKABLE, ids=str)
@pytest.mark.parametrize("below", [0, 1000])
def test_heads_of_a_group_in_one_block(case, below, monkeypatch):
    """With and without, whatever the number of queries."""
    monkeypatch.setattr(forward, "PACK_BELOW", below)
    forward_within_budget(case)


def test_rows_behind_a_packed_batch_are_written_even_if_no_sequence_has_any():
    case = BY_NAME["packed_nothing"]
    call = call_of(case.make(0))._replace(max_seqlen_q=0, max_seqlen_k=0)
    out, lse = poisoned(call.empty_out()), poisoned(call.empty_lse())
    attention_forward(call, out, lse)
    assert (out == 0).all() and (lse == -torch.inf).all()
