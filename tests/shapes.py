"""The attention problems that every backend is tested on.

`CASES` is the curated list: every feature and every nasty shape, small enough for an interpreter.
`attention_cases()` draws random valid problems for hypothesis. What a case is and how it becomes
tensors stands in attention_case.py.
"""

from __future__ import annotations

from typing import Any

import torch
from attention_case import AttentionCase
from attention_inputs import AttentionInputs
from hypothesis import strategies as st

from fused_attention.masks import UNBOUNDED, Band

__all__ = ["CASES", "DTYPES", "AttentionCase", "AttentionInputs", "attention_cases"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_BIAS_SHAPES = ("bhqk", "1hqk", "b1qk", "11qk", "bh1k", "b11k", "1h1k", "bhq1", "11q1", "1111")

_LENGTHS = (
    AttentionCase("plain"),
    AttentionCase("one_of_everything", batch=1, heads_q=1, len_q=1, head_dim=1),
    AttentionCase("one_key", len_q=37, len_k=1),
    AttentionCase("one_query", len_q=1, len_k=131),
    AttentionCase("odd_lengths", len_q=127, len_k=129),
    AttentionCase("tile_sized", len_q=128, len_k=128),
    AttentionCase("more_queries", len_q=133, len_k=19),
    AttentionCase("more_keys", len_q=19, len_k=200),
    AttentionCase("no_batch", batch=0),
    AttentionCase("no_queries", len_q=0, len_k=7),
    AttentionCase("no_keys", len_q=7, len_k=0),
    AttentionCase("no_keys_but_sinks", len_q=7, len_k=0, sinks=True),
    AttentionCase("nothing", batch=0, len_q=0),
)

_DIMS = (
    *(AttentionCase(f"dim_{dim}", head_dim=dim, band=Band.causal()) for dim in (1, 3, 17)),
    *(AttentionCase(f"dim_{dim}", head_dim=dim, len_k=70) for dim in (64, 80, 96, 128, 256)),
    AttentionCase("dim_512", batch=1, head_dim=512, len_k=40),
    AttentionCase("narrow_value", head_dim=64, value_dim=24),
    AttentionCase("wide_value", head_dim=24, value_dim=128),
    AttentionCase("latent", heads_q=4, heads_kv=1, head_dim=192, value_dim=128, len_q=9, len_k=50),
    AttentionCase("grouped_heads", heads_q=6, heads_kv=2),
    AttentionCase("one_kv_head", heads_q=5, heads_kv=1, band=Band.causal()),
    AttentionCase("many_heads", batch=3, heads_q=8, heads_kv=4, len_q=5, len_k=9),
)

_BANDS = (
    AttentionCase("causal", len_q=70, band=Band.causal()),
    AttentionCase("causal_more_keys", len_q=33, len_k=70, band=Band.causal()),
    AttentionCase("causal_more_queries", len_q=70, len_k=33, band=Band.causal()),
    AttentionCase("causal_top_left", len_q=33, len_k=70, band=Band.causal(offset=0)),
    AttentionCase("causal_past_the_keys", len_q=70, len_k=33, band=Band.causal(offset=0)),
    AttentionCase("causal_decode", len_q=1, len_k=90, band=Band.causal()),
    AttentionCase("sliding", len_q=150, band=Band.sliding(17)),
    AttentionCase("sliding_one", len_q=40, band=Band.sliding(1)),
    AttentionCase("sliding_decode", len_q=3, len_k=150, band=Band.sliding(40)),
    AttentionCase(
        "grouped_decode", heads_q=70, heads_kv=1, len_q=1, len_k=150, band=Band.sliding(50)
    ),
    AttentionCase(
        "grouped_decode_swapped", heads_q=6, heads_kv=2, len_q=1, len_k=70, layout="swapped"
    ),
    AttentionCase("window", len_q=130, len_k=140, band=Band.window(9, 4)),
    AttentionCase("window_ahead", len_q=60, band=Band.window(0, None)),
    AttentionCase("window_far_away", len_q=20, len_k=90, band=Band.window(3, 3, offset=60)),
    AttentionCase("band_above_all", len_q=20, band=Band.causal(offset=-30)),
    AttentionCase("band_below_all", len_q=20, band=Band.window(4, None, offset=30)),
    AttentionCase("unbounded_offset", len_q=20, band=Band(5, UNBOUNDED, -UNBOUNDED)),
    AttentionCase("offsets", batch=4, band=Band.causal(), band_offsets=(0, -40, 12, -1)),
    AttentionCase("offsets_window", batch=3, band=Band.window(5, 2), band_offsets=(7, 0, -7)),
    AttentionCase("kv_lengths", batch=4, len_k=70, kv_lengths=(0, 1, 70, 33)),
    AttentionCase("kv_lengths_causal", batch=4, kv_lengths=(0, 35, 8, 17), band=Band.causal()),
    AttentionCase("kv_lengths_all_zero", kv_lengths=(0, 0)),
    AttentionCase(
        "kv_lengths_decode",
        batch=3,
        heads_q=4,
        heads_kv=2,
        len_q=1,
        len_k=140,
        kv_lengths=(3, 140, 64),
        band=Band.sliding(20),
        band_offsets=(2, 139, 63),
    ),
)

_TERMS = (
    *(AttentionCase(f"bias_{shape}", len_k=41, bias=shape) for shape in _BIAS_SHAPES),
    AttentionCase("bias_hides_all", bias="11qk", bias_hides=1.0),
    AttentionCase("bias_causal", len_q=66, bias="1hqk", bias_hides=0.0, band=Band.causal()),
    AttentionCase("bias_kv_lengths", batch=3, bias="b11k", kv_lengths=(35, 0, 20)),
    AttentionCase("alibi", heads_q=3, len_q=70, alibi="h", band=Band.causal()),
    AttentionCase("alibi_both_sides", heads_q=3, len_q=40, len_k=50, alibi="bh"),
    AttentionCase("alibi_offsets", alibi="h", band_offsets=(11, -40), band=Band.window(30, None)),
    AttentionCase("softcap", softcap=1.5, magnitude=4.0),
    AttentionCase("softcap_causal", softcap=20.0, magnitude=20.0, band=Band.causal()),
    AttentionCase("sinks", heads_q=4, heads_kv=2, sinks=True, band=Band.sliding(9)),
    AttentionCase("sinks_dead_rows", sinks=True, len_q=20, band=Band.causal(offset=-5)),
    AttentionCase("dropout", len_q=50, len_k=70, dropout_p=0.25),
    AttentionCase("dropout_causal", heads_q=4, heads_kv=2, dropout_p=0.5, band=Band.causal()),
    AttentionCase("dropout_nearly_all", dropout_p=0.99),
    AttentionCase("negative_scale", scale=-0.3, band=Band.causal()),
    AttentionCase("zero_scale", scale=0.0),
    AttentionCase("peaked", head_dim=64, magnitude=30.0),
    AttentionCase("peaked_causal", head_dim=64, magnitude=30.0, band=Band.causal()),
    *(AttentionCase(f"layout_{x}", len_k=40, layout=x) for x in ("swapped", "sliced", "shared")),
    AttentionCase(
        "everything",
        batch=3,
        heads_q=4,
        heads_kv=2,
        len_q=45,
        len_k=75,
        head_dim=24,
        value_dim=40,
        band=Band.window(37, 3),
        scale=0.2,
        softcap=3.0,
        bias="1hqk",
        alibi="bh",
        sinks=True,
        dropout_p=0.1,
        kv_lengths=(75, 0, 50),
        band_offsets=(30, 0, -10),
        layout="swapped",
    ),
)

_PACKED = (
    AttentionCase("packed", seq_lens_q=(5, 33, 1)),
    AttentionCase("packed_one", seq_lens_q=(40,), band=Band.causal()),
    AttentionCase("packed_empty_sequences", seq_lens_q=(0, 7, 0, 0, 20, 0), trailing=3),
    AttentionCase("packed_nothing", seq_lens_q=(), trailing=4),
    AttentionCase(
        "packed_lengths_differ",
        seq_lens_q=(5, 30, 0, 17, 4),
        seq_lens_k=(9, 12, 6, 0, 70),
        band=Band.causal(),
        trailing=2,
    ),
    AttentionCase(
        "packed_decode",
        heads_q=6,
        heads_kv=2,
        seq_lens_q=(1, 1, 1),
        seq_lens_k=(1, 90, 33),
        band=Band.sliding(40),
    ),
    AttentionCase("packed_top_left", seq_lens_q=(9, 30), band=Band.causal(offset=0)),
    AttentionCase("packed_swapped", seq_lens_q=(9, 30), layout="swapped", trailing=1),
    AttentionCase(
        "packed_everything",
        heads_q=4,
        heads_kv=2,
        head_dim=24,
        value_dim=40,
        seq_lens_q=(9, 0, 33, 20),
        seq_lens_k=(20, 4, 30, 0),
        trailing=5,
        band=Band.window(12, 2),
        softcap=3.0,
        alibi="bh",
        sinks=True,
        dropout_p=0.2,
        band_offsets=(11, 0, -4, 2),
        layout="sliced",
    ),
)

CASES: tuple[AttentionCase, ...] = (*_LENGTHS, *_DIMS, *_BANDS, *_TERMS, *_PACKED)


def _bands() -> st.SearchStrategy[Band]:
    end = st.one_of(st.just(UNBOUNDED), st.integers(0, 40))
    return st.builds(Band, end, end, st.one_of(st.none(), st.integers(-45, 45)))


@st.composite
def _dense_lengths(draw: st.DrawFn) -> dict[str, Any]:
    batch, len_k = draw(st.integers(0, 3)), draw(st.integers(0, 40))
    lengths = st.lists(st.integers(0, len_k), min_size=batch, max_size=batch).map(tuple)
    return {
        "batch": batch,
        "len_q": draw(st.integers(0, 40)),
        "len_k": len_k,
        "bias": draw(st.one_of(st.none(), st.sampled_from(_BIAS_SHAPES))),
        "kv_lengths": draw(st.one_of(st.none(), lengths)),
        "band_offsets": draw(_band_offsets(batch)),
    }


@st.composite
def _packed_lengths(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(0, 4))
    lengths = st.lists(st.integers(0, 25), min_size=count, max_size=count).map(tuple)
    return {
        "seq_lens_q": draw(lengths),
        "seq_lens_k": draw(st.one_of(st.none(), lengths)),
        "trailing": draw(st.integers(0, 3)),
        "band_offsets": draw(_band_offsets(count)),
    }


def _band_offsets(count: int) -> st.SearchStrategy[tuple[int, ...] | None]:
    offsets = st.lists(st.integers(-45, 45), min_size=count, max_size=count).map(tuple)
    return st.one_of(st.none(), offsets)


@st.composite
def attention_cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> AttentionCase:
    """Small valid problems, dense and packed, with any combination of features."""
    heads_kv = draw(st.integers(1, 2))
    problem: dict[str, Any] = {
        "heads_q": heads_kv * draw(st.integers(1, 3)),
        "heads_kv": heads_kv,
        "head_dim": draw(st.sampled_from((1, 3, 8, 16, 17, 32, 64, 80))),
        "value_dim": draw(st.sampled_from((None, 1, 5, 16, 33, 64))),
        "dtype": draw(st.sampled_from(dtypes)),
        "band": draw(_bands()),
        "scale": draw(st.sampled_from((None, 0.5, -0.25))),
        "softcap": draw(st.sampled_from((0.0, 2.0, 30.0))),
        "alibi": draw(st.sampled_from((None, "h", "bh"))),
        "sinks": draw(st.booleans()),
        "dropout_p": draw(st.sampled_from((0.0, 0.0, 0.3))),
        "layout": draw(st.sampled_from(("contiguous", "swapped", "sliced", "shared"))),
    }
    problem |= draw(_packed_lengths() if draw(st.booleans()) else _dense_lengths())
    return AttentionCase("drawn", **problem)
