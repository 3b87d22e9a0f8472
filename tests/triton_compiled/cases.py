"""What is executed by the emulator: each kernel, dtype and kind of tile; small enough for it.

All features on all problems are the interpreter's work (tests/backends). Here it is the compiled
code that counts: copies, barriers and layouts, which differ by chip, dtype, dim and tile.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from additive_case import AdditiveCase
from attention_case import AttentionCase
from decode_case import DecodeCase
from local_case import LocalCase

from fused_attention.masks import Band

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FEW = {"batch": 1, "heads_q": 2, "heads_kv": 1}

# Forward and backward, on each chip.
CASES = (
    # Several tiles of each kind: full, of the diagonal, of the end.
    AttentionCase("causal_64", len_q=150, head_dim=64, band=Band.causal(), dtype=BF16, **FEW),
    AttentionCase(
        "window_128", 1, 1, len_q=70, len_k=90, head_dim=128, band=Band.window(20, 5), dtype=FP16
    ),
    AttentionCase("fp32", 1, 1, len_q=40, len_k=70, head_dim=32, dtype=FP32, dropout_p=0.3),
    # By pointers where there are descriptors for others: rows that begin at no 16 bytes.
    AttentionCase("unaligned", 1, 1, len_q=40, len_k=70, head_dim=40, layout="sliced", dtype=BF16),
    AttentionCase(
        "everything",
        batch=2,
        heads_q=2,
        heads_kv=1,
        len_q=45,
        len_k=75,
        head_dim=24,
        value_dim=40,
        band=Band.window(37, 3),
        softcap=3.0,
        bias="1hqk",
        alibi="bh",
        sinks=True,
        dropout_p=0.1,
        kv_lengths=(75, 50),
        band_offsets=(30, -10),
        layout="swapped",
        dtype=FP16,
    ),
    AttentionCase(
        "packed",
        heads_q=2,
        heads_kv=1,
        head_dim=64,
        seq_lens_q=(9, 0, 70),
        seq_lens_k=(20, 4, 80),
        trailing=5,
        band=Band.causal(),
        sinks=True,
        dtype=BF16,
    ),
)
# Forward alone.
FORWARD_CASES = (
    AttentionCase("dim_256", 1, 1, len_q=70, len_k=70, head_dim=256, dtype=BF16),
    AttentionCase("packed_heads", 1, 8, 2, len_q=3, len_k=150, head_dim=64, dtype=FP16),
)
# Facts about the weights: of several tiles of queries and keys, and with every term.
MAPS_CASES = (
    AttentionCase("causal", 1, 1, len_q=70, len_k=90, head_dim=64, band=Band.causal(), dtype=BF16),
    AttentionCase("fp32", 1, 1, len_q=35, len_k=33, head_dim=24, layout="swapped", dtype=FP32),
    replace(CASES[4], batch=1, len_q=9, len_k=20, kv_lengths=(13,), band_offsets=(2,)),
    AttentionCase(
        "packed",
        heads_q=2,
        head_dim=16,
        seq_lens_q=(9, 0, 20),
        seq_lens_k=(20, 4, 30),
        trailing=5,
        band=Band.sliding(9),
        dtype=BF16,
    ),
)
DECODE_CASES = (
    DecodeCase("parts", (700, 300), 4, 1, head_dim=64, dtype=BF16, sinks=True),
    DecodeCase("pages", (70, 9), 8, 2, head_dim=128, page_size=16, dtype=FP16, rotary=1.0),
    DecodeCase("tile_of_32_rows", (130, 9), 8, 2, len_q=5, head_dim=64, dtype=BF16),
    DecodeCase("fp32", (70, 33), 4, 2, head_dim=48, layout="swapped", dtype=FP32),
    DecodeCase(
        "everything",
        (140, 0, 63),
        heads_q=6,
        len_q=3,
        new=4,
        head_dim=24,
        value_dim=40,
        page_size=5,
        starts=(7, 0, 1),
        rotary=0.5,
        band=Band.window(30, 1),
        softcap=3.0,
        alibi="bh",
        sinks=True,
        layout="swapped",
        dtype=BF16,
    ),
)
# A tile of 16 queries with products, one in fp32, one of a single query.
ADDITIVE_CASES = (
    AdditiveCase(
        "lengths", 2, 0, 20, 40, 40, 24, band=Band.window(25, 9), key_lengths=(40, 21), dtype=BF16
    ),
    AdditiveCase("fp32", 1, 2, 18, 34, 20, 40, v_heads=True, layout="sliced"),
    AdditiveCase("step", 2, 1, 1, 40, 70, 40, key_lengths=(33, 40), dtype=FP16),
)
LOCAL_CASES = (
    LocalCase("grouped", 1, 2, 1, 40, 70, 32, 48, BF16, sigma="query", positions="rising"),
    LocalCase(
        "log_bias", 2, 1, 1, 20, 50, 20, 16, FP16, 9.5, "query", "log_bias", "spread", (50, 9)
    ),
    LocalCase("fp32", 1, 1, 1, 20, 40, 24, 16, width=4.5, layout="swapped"),
)
