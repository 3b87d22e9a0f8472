"""The steps of decoding that the kernels are tested on, small enough for an emulator."""

from __future__ import annotations

import torch
from cuda.decode_case import DecodeCase as Case

from fused_attention.masks import UNBOUNDED

CASES = (
    Case("plain"),
    Case("grouped", heads_q=8, heads_kv=2, head_dim=128),
    Case("many_tiles", lengths=(500, 260), heads_q=4, heads_kv=1),
    Case("group_of_three", heads_q=6, heads_kv=2, lengths=(37, 64, 1)),
    Case("several_queries", len_q=3, heads_q=4),
    Case("two_row_tiles", len_q=3, heads_q=8, heads_kv=1),
    Case("group_of_six_in_two_tiles", len_q=4, heads_q=6, heads_kv=1),
    Case("more_queries_than_keys", lengths=(2, 0), len_q=3, len_new=1),
    Case("both_sides", right=UNBOUNDED, len_q=3),
    Case("nothing_cached", lengths=(0, 0), heads_q=4),
    *(Case(f"dim_{dim}", head_dim=dim, lengths=(40, 17)) for dim in (32, 80, 96, 128, 192, 256)),
    Case("odd_dims", head_dim=20, value_dim=12, heads_q=6, heads_kv=2),
    Case("narrow_value", head_dim=192, value_dim=128, heads_q=4, heads_kv=1, lengths=(50,)),
    *(Case(f"pages_of_{n}", page_size=n, len_q=2, len_new=2, heads_q=4) for n in (1, 3, 16, 64)),
    Case("append", len_new=3, len_q=3, capacity=80),
    Case("cache_is_full", lengths=(70, 71), capacity=71, len_new=2, len_q=2),
    Case("cache_rows", cache_rows=(3, 1), capacity=90, len_new=2),
    Case("rotary", len_new=1, rotary=64),
    Case("rotary_queries_only", rotary=32, len_q=2),
    Case("rotary_pages", len_new=2, len_q=2, rotary=32, rotary_interleaved=True, page_size=5),
    Case("rotary_fp32", len_new=1, rotary=24, rotary_dtype=torch.float32, head_dim=40),
    Case("window", left=20, lengths=(70, 5, 33)),
    Case("window_pages", left=20, page_size=8, lengths=(70, 5, 33), len_q=2),
    Case("window_both_sides", left=9, right=2, len_q=5, lengths=(70, 40)),
    Case("starts", starts=(10, 33), lengths=(70, 33)),
    Case("starts_window", starts=(60, 0, 50), lengths=(70, 33, 51), len_q=2, left=30),
    Case("softcap", softcap=2.0, scale=1.0),
    Case("alibi", alibi="h", heads_q=4, len_q=2),
    Case("alibi_of_rows", alibi="bh", heads_q=4, starts=(3, 30)),
    Case("sinks", sinks=True, heads_q=4, lengths=(0, 40)),
    Case("negative_scale", scale=-0.2),
    Case("zero_scale", scale=0.0),
    Case("unaligned", odd=True, len_new=1, rotary=16),
    Case("unaligned_pages", odd=True, page_size=4, head_dim=33),
    *(Case(f"{n}_splits", splits=n, lengths=(300, 33, 0), sinks=n == 5) for n in (2, 5, 40)),
    Case("splits_window", splits=3, left=100, lengths=(300, 120), len_q=4),
    Case("splits_wide", splits=2, head_dim=256, lengths=(90,), heads_q=4, heads_kv=1),
    Case("splits_odd_value", splits=2, head_dim=40, value_dim=13, heads_q=4),
    Case(
        "everything",
        lengths=(140, 0, 77),
        heads_q=6,
        len_q=2,
        len_new=2,
        head_dim=72,
        page_size=7,
        left=60,
        softcap=3.0,
        alibi="bh",
        sinks=True,
        rotary=48,
        splits=3,
    ),
)
