"""The problems of local attention that its tests run."""

from __future__ import annotations

import math
import random

import torch
from local_case import LocalCase

CASES = (
    LocalCase("plain"),
    LocalCase("log_bias", mode="log_bias"),
    LocalCase("one_of_everything", 1, 1, 1, 1, 1, 1, 1, sigma="query", positions="same"),
    LocalCase("one_query", batch=5, len_q=1, len_k=200, width=10),
    LocalCase("one_key", len_k=1, sigma="query"),
    LocalCase("grouped", heads_q=6, sigma="head"),
    LocalCase("one_kv_head", heads_q=4, heads_kv=1, mode="log_bias", sigma="query"),
    LocalCase("odd", len_q=37, len_k=71, head_dim=19, value_dim=13, width=7.9, sigma="query"),
    LocalCase("wide_heads", batch=1, len_q=20, head_dim=300, value_dim=200, sigma="all"),
    LocalCase("wide_value", head_dim=5, value_dim=130, mode="log_bias", sigma="all"),
    LocalCase("rising", len_q=100, len_k=100, positions="rising", sigma="number"),
    LocalCase("same", len_q=70, positions="same", sigma="query"),
    LocalCase("beyond", positions="beyond", sigma="query"),
    LocalCase("shared_positions", heads_q=4, positions="shared", sigma="head"),
    LocalCase("no_width", width=0.0, sigma="query"),
    LocalCase("fraction_of_a_key", width=0.7, mode="log_bias", sigma="query"),
    LocalCase("no_gaussian", sigma="inf", len_q=60),
    LocalCase("no_gaussian_log_bias", sigma="inf", mode="log_bias"),
    LocalCase("long_windows", 1, len_q=90, len_k=300, width=80, sigma="query"),
    LocalCase("whole_sequence", 1, len_q=70, len_k=150, width=math.inf, sigma="number"),
    LocalCase("whole_log_bias", 1, len_q=70, len_k=150, width=math.inf, sigma="query",
              mode="log_bias"),
    LocalCase("sparse", batch=1, len_q=40, len_k=700, width=2),
    LocalCase("lengths", 4, len_k=70, key_lengths=(0, 1, 70, 33), sigma="query"),
    LocalCase("lengths_log_bias", 3, key_lengths=(5, 50, 0), mode="log_bias", width=30),
    LocalCase("swapped", layout="swapped", key_lengths=(20, 9), sigma="head"),
    LocalCase("sliced", layout="sliced", len_k=33, mode="log_bias"),
    LocalCase("scale_one", scale=1.0, head_dim=64, value_dim=64, width=10, sigma="query"),
    LocalCase("peaked", magnitude=20.0, mode="log_bias"),
    LocalCase("no_batch", batch=0, sigma="query"),
    LocalCase("no_queries", len_q=0, sigma="query"),
    LocalCase("no_keys", len_k=0, sigma="query"),
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def random_case(seed: int, dtype: torch.dtype) -> LocalCase:
    """Any shapes, strides, modes, widths, lengths and positions."""
    draw = random.Random(seed)
    heads_kv, batch, len_k = draw.choice((1, 2, 3)), draw.randint(1, 3), draw.randint(1, 260)
    lengths = tuple(draw.randint(0, len_k) for _ in range(batch))
    return LocalCase(
        f"random_{seed}",
        batch=batch,
        heads_q=heads_kv * draw.choice((1, 2, 4)),
        heads_kv=heads_kv,
        len_q=draw.randint(1, 130),
        len_k=len_k,
        head_dim=draw.randint(1, 80),
        value_dim=draw.randint(1, 80),
        dtype=dtype,
        width=draw.choice((0.0, 1.0, 4.5, 10.0, 33.0, 70.0, 500.0, math.inf)),
        sigma=draw.choice(("inf", "number", "all", "head", "query")),
        mode=draw.choice(("luong", "log_bias")),
        positions=draw.choice(("spread", "spread", "rising", "same", "shared")),
        key_lengths=draw.choice((None, lengths)),
        layout=draw.choice(("contiguous", "swapped", "sliced")),
    )
