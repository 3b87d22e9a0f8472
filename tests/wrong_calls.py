"""Calls with one wrong argument each, and what the message must say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fused_attention import Band, attention, attention_varlen


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def dense(**changes: Any) -> Any:
    """attention on [2, 4, 5, 8] and [2, 2, 7, 8], with these arguments replaced."""
    arguments = {"query": rand(2, 4, 5, 8), "key": rand(2, 2, 7, 8), "value": rand(2, 2, 7, 8)}
    return attention(**{**arguments, **changes})


def packed(**changes: Any) -> Any:
    """attention_varlen on sequences of 2 and 3 queries, 4 and 3 keys."""
    arguments = {
        "query": rand(5, 4, 8),
        "key": rand(7, 2, 8),
        "value": rand(7, 2, 8),
        "cu_seqlens_q": ints(0, 2, 5),
        "cu_seqlens_k": ints(0, 4, 7),
    }
    return attention_varlen(**{**arguments, **changes})


def ints(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class WrongCall:
    """A call with one wrong argument, and what the message must name."""

    argument: str
    rule: str
    value: str
    changes: dict[str, Any]
    error: type[Exception] = ValueError
    call: Callable[..., Any] = dense

    def __str__(self) -> str:
        return re.sub(r"\W+", "-", f"{self.argument} {self.rule} {self.value}")[:70]


OPERANDS = [
    WrongCall("query", "must be a torch.Tensor", "list", {"query": [1.0]}, TypeError),
    WrongCall("key", "must be a torch.Tensor", "NoneType", {"key": None}, TypeError),
    WrongCall("query", "strided", "sparse", {"query": rand(2, 4, 5, 8).to_sparse()}, TypeError),
    WrongCall(
        "value",
        "must not be nested",
        "nested tensor",
        {"value": torch.nested.nested_tensor([rand(2, 7, 8)], layout=torch.jagged)},
        TypeError,
    ),
    WrongCall("query", "4-D", "(5, 8)", {"query": rand(5, 8)}),
    WrongCall("key", "4-D", "(2, 7, 8)", {"key": rand(2, 7, 8)}),
    WrongCall("value", "3-D", "(1, 7, 2, 8)", {"value": rand(1, 7, 2, 8)}, call=packed),
    WrongCall("query", "float64, float32", "int64", {"query": ints(1).long()}, TypeError),
    WrongCall(
        "query", "float64, float32", "complex64", {"query": rand(2, 4, 5, 8) + 0j}, TypeError
    ),
    WrongCall("key", "dtype torch.float32", "float16", {"key": rand(2, 2, 7, 8).half()}, TypeError),
    WrongCall(
        "value", "dtype torch.float32", "float64", {"value": rand(2, 2, 7, 8).double()}, TypeError
    ),
    WrongCall("key", "device cpu", "meta", {"key": meta(2, 2, 7, 8)}),
    WrongCall("value", "device cpu", "meta", {"value": meta(2, 2, 7, 8)}),
    WrongCall("query", "contiguous in its last dimension", "5", {"query": rand(2, 4, 8, 5).mT}),
    WrongCall("key", "contiguous in its last dimension", "7", {"key": rand(2, 2, 8, 7).mT}),
    WrongCall("key", "batch 2", "3", {"key": rand(3, 2, 7, 8)}),
    WrongCall("value", "batch 2", "1", {"value": rand(1, 2, 7, 8)}),
    WrongCall("key", "divide query's 4", "3", {"key": rand(2, 3, 7, 8), "value": rand(2, 3, 7, 8)}),
    WrongCall("key", "divide query's 4", "0", {"key": rand(2, 0, 7, 8), "value": rand(2, 0, 7, 8)}),
    WrongCall("query", "at least 1 head", "0", {"query": rand(2, 0, 5, 8)}),
    WrongCall("value", "key's 2 heads", "4", {"value": rand(2, 4, 7, 8)}),
    WrongCall("value", "key's length 7", "6", {"value": rand(2, 2, 6, 8)}),
    WrongCall("key", "query's head_dim 8", "9", {"key": rand(2, 2, 7, 9)}),
    WrongCall("query", "at least 1", "0", {"query": rand(2, 4, 5, 0), "key": rand(2, 2, 7, 0)}),
    WrongCall("value", "at least 1", "0", {"value": rand(2, 2, 7, 0)}),
    WrongCall(
        "query",
        "below 2**30",
        str(1 << 30),
        {"query": meta(1, 1, 1 << 30, 1), "key": meta(1, 1, 2, 1), "value": meta(1, 1, 2, 1)},
    ),
    WrongCall(
        "key",
        "below 2**30",
        str(1 << 31),
        {
            "query": meta(1, 1, 2, 1),
            "key": meta(1, 1, 1 << 31, 1),
            "value": meta(1, 1, 1 << 31, 1),
        },
    ),
    WrongCall(
        "query",
        "below 2**31",
        str(1 << 31),
        {name: meta(1 << 20, 1 << 11, 1, 1) for name in ("query", "key", "value")},
    ),
]

SCALARS = [
    WrongCall("scale", "finite", "nan", {"scale": float("nan")}),
    WrongCall("scale", "finite", "-inf", {"scale": float("-inf")}),
    WrongCall("scale", "must be a number", "str '1'", {"scale": "1"}, TypeError),
    WrongCall("scale", "must be a number", "Tensor", {"scale": torch.tensor(1.0)}, TypeError),
    WrongCall("softcap", "at least 0", "-1.0", {"softcap": -1}),
    WrongCall("softcap", "finite", "inf", {"softcap": float("inf")}),
    WrongCall("softcap", "must be a number", "bool True", {"softcap": True}, TypeError),
    WrongCall("dropout_p", "[0, 1 - 2**-17)", "1.0", {"dropout_p": 1.0}),
    WrongCall("dropout_p", "[0, 1 - 2**-17)", "-0.1", {"dropout_p": -0.1}),
    WrongCall("dropout_p", "[0, 1 - 2**-17)", "nan", {"dropout_p": float("nan")}),
    WrongCall("dropout_p", "must be a number", "NoneType", {"dropout_p": None}, TypeError),
    WrongCall("dropout_seed", "int", "str 'a'", {"dropout_p": 0.5, "dropout_seed": "a"}, TypeError),
    WrongCall("dropout_seed", "[0, 2**63)", "-1", {"dropout_p": 0.5, "dropout_seed": -1}),
    WrongCall(
        "dropout_seed",
        "int64 [2]",
        "torch.int32 (2,)",
        {"dropout_p": 0.5, "dropout_seed": ints(1, 2)},
    ),
    WrongCall(
        "dropout_seed",
        "device cpu",
        "meta",
        {"dropout_p": 0.5, "dropout_seed": meta(2, dtype=torch.int64)},
    ),
    WrongCall(
        "dropout_offset",
        "[0, 2**32)",
        str(1 << 32),
        {"dropout_p": 0.5, "dropout_seed": 1, "dropout_offset": 1 << 32},
    ),
    WrongCall(
        "dropout_offset",
        "[0, 2**32)",
        "-3",
        {"dropout_p": 0.5, "dropout_seed": ints(1, -3, dtype=torch.int64)},
    ),
    WrongCall(
        "dropout_offset", "needs a dropout_seed", "5", {"dropout_p": 0.5, "dropout_offset": 5}
    ),
    WrongCall("backend", "'reference'", "'nonsense'", {"backend": "nonsense"}),
]

BANDS = [
    WrongCall("window", "[0, 2**30]", "(-1, 0)", {"window": (-1, 0)}),
    WrongCall("window", "[0, 2**30]", "(0, -1)", {"window": (0, -1)}),
    WrongCall("window", "[0, 2**30]", str(1 << 31), {"window": (1 << 31, 0)}),
    WrongCall("window", "must be a pair", "5", {"window": 5}, TypeError),
    WrongCall("window", "must be a pair", "(1, 2, 3)", {"window": (1, 2, 3)}, TypeError),
    WrongCall("window", "an int", "(1.5, None)", {"window": (1.5, None)}, TypeError),
    WrongCall("window", "right must be None or 0", "2", {"window": (3, 2), "causal": True}),
    WrongCall("band", "must be a Band", "str", {"band": "causal"}, TypeError),
    WrongCall("band", "excludes causal", "causal=True", {"band": Band(), "causal": True}),
    WrongCall("band", "excludes causal and window", "(1, 1)", {"band": Band(), "window": (1, 1)}),
]

FEATURES = [
    WrongCall("bias", "must be a torch.Tensor", "float", {"bias": 1.0}, TypeError),
    WrongCall("bias", "floating point", "torch.bool", {"bias": rand(2, 4, 5, 7) > 0}, TypeError),
    WrongCall("bias", "device cpu", "meta", {"bias": meta(2, 4, 5, 7)}),
    WrongCall("bias", "[2, 4, 5, 7]", "(5, 7)", {"bias": rand(5, 7)}),
    WrongCall("bias", "[2, 4, 5, 7]", "(2, 2, 5, 7)", {"bias": rand(2, 2, 5, 7)}),
    WrongCall("bias", "[2, 4, 5, 7]", "(2, 4, 5, 6)", {"bias": rand(2, 4, 5, 6)}),
    WrongCall(
        "alibi_slopes", "floating point", "int32", {"alibi_slopes": ints(1, 2, 3, 4)}, TypeError
    ),
    WrongCall("alibi_slopes", "[heads] = [4]", "(2,)", {"alibi_slopes": rand(2)}),
    WrongCall("alibi_slopes", "[batch, heads] = [2, 4]", "(3, 4)", {"alibi_slopes": rand(3, 4)}),
    WrongCall("alibi_slopes", "device cpu", "meta", {"alibi_slopes": meta(4)}),
    WrongCall(
        "alibi_slopes",
        "must not require grad",
        "requires_grad=True",
        {"alibi_slopes": rand(4).requires_grad_()},
    ),
    WrongCall("sinks", "[heads] = [4]", "(2,)", {"sinks": rand(2)}),
    WrongCall("sinks", "floating point", "int32", {"sinks": ints(1, 2, 3, 4)}, TypeError),
    WrongCall("sinks", "device cpu", "meta", {"sinks": meta(4)}),
    WrongCall("kv_lengths", "must be a torch.Tensor", "list", {"kv_lengths": [7, 7]}, TypeError),
    WrongCall("kv_lengths", "integer", "float32", {"kv_lengths": rand(2)}, TypeError),
    WrongCall("kv_lengths", "2 entries", "3", {"kv_lengths": ints(7, 7, 7)}),
    WrongCall("kv_lengths", "1-D", "(1, 2)", {"kv_lengths": ints(7, 7)[None]}),
    WrongCall("kv_lengths", "device cpu", "meta", {"kv_lengths": meta(2, dtype=torch.int32)}),
    WrongCall("kv_lengths", "[0, 7]", "8 at index 1", {"kv_lengths": ints(7, 8)}),
    WrongCall("kv_lengths", "[0, 7]", "-1 at index 0", {"kv_lengths": ints(-1, 7)}),
    WrongCall(  # as int32 this would be 5
        "kv_lengths",
        "[0, 7]",
        "beyond 2**30 at index 1",
        {"kv_lengths": ints(7, (1 << 32) + 5, dtype=torch.int64)},
    ),
    WrongCall("band_offsets", "2 entries", "1", {"band_offsets": ints(0)}),
    WrongCall("band_offsets", "integer", "bool", {"band_offsets": ints(0, 1).bool()}, TypeError),
    WrongCall(
        "band_offsets",
        "[-2**30, 2**30]",
        "beyond 2**30 at index 0",
        {"band_offsets": ints(1 << 31, 0, dtype=torch.int64)},
    ),
]

PACKED = [
    WrongCall(
        "cu_seqlens_q", "must be a torch.Tensor", "NoneType", {"cu_seqlens_q": None}, TypeError
    ),
    WrongCall("cu_seqlens_q", "integer", "float32", {"cu_seqlens_q": rand(3)}, TypeError),
    WrongCall("cu_seqlens_q", "1-D", "()", {"cu_seqlens_q": torch.tensor(0)}),
    WrongCall("cu_seqlens_q", "batch + 1 entries", "none", {"cu_seqlens_q": ints()}),
    WrongCall("cu_seqlens_k", "3 entries", "2", {"cu_seqlens_k": ints(0, 7)}),
    WrongCall("cu_seqlens_q", "start at 0", "1", {"cu_seqlens_q": ints(1, 2, 5)}),
    WrongCall("cu_seqlens_q", "never decrease", "2 after 4 at 2", {"cu_seqlens_q": ints(0, 4, 2)}),
    WrongCall("cu_seqlens_q", "within the 5 rows", "6", {"cu_seqlens_q": ints(0, 2, 6)}),
    WrongCall("cu_seqlens_k", "start at 0", "2", {"cu_seqlens_k": ints(2, 4, 7)}),
    WrongCall("cu_seqlens_k", "never decrease", "3 after 4 at 2", {"cu_seqlens_k": ints(0, 4, 3)}),
    WrongCall("cu_seqlens_k", "within the 7 rows", "9", {"cu_seqlens_k": ints(0, 4, 9)}),
    WrongCall("max_seqlen_q", "longest sequence, 3 (sequence 1)", "2", {"max_seqlen_q": 2}),
    WrongCall("max_seqlen_k", "longest sequence, 4 (sequence 0)", "3", {"max_seqlen_k": 3}),
    WrongCall("max_seqlen_q", "an int", "float 2.0", {"max_seqlen_q": 2.0}, TypeError),
    WrongCall("max_seqlen_k", "[0, 2**30)", "-1", {"max_seqlen_k": -1}),
    WrongCall("key", "divide query's 4", "3", {"key": rand(7, 3, 8), "value": rand(7, 3, 8)}),
    WrongCall("value", "key's length 7", "6", {"value": rand(6, 2, 8)}),
    WrongCall("alibi_slopes", "[2, 4]", "(3, 4)", {"alibi_slopes": rand(3, 4)}),
    WrongCall("band_offsets", "2 entries", "3", {"band_offsets": ints(0, 0, 0)}),
]

WRONG_CALLS = (
    *OPERANDS,
    *SCALARS,
    *BANDS,
    *FEATURES,
    *(replace(wrong, call=packed) for wrong in PACKED),
)
