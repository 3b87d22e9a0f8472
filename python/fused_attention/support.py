"""What each backend can run on this machine, found by asking it about sample problems."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fused_attention.backends import ORDER, Backend
from fused_attention.decode_problem import DecodeProblem
from fused_attention.masks import Band
from fused_attention.problem import Problem
from fused_attention.text import table

# Short names for tables, in the order in which they are asked about.
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}

DEVICE_TYPES = ("cpu", "cuda")

# What each feature changes in a plain problem.
FEATURES: dict[str, dict[str, Any]] = {
    "forward": {},
    "backward": {"needs_grad": True},
    "causal": {"band": Band.causal()},
    "sliding window": {"band": Band.sliding(64)},
    "one query (decoding)": {"len_q": 1},
    "grouped heads": {"heads_kv": 1},
    "head_dim 128": {"head_dim": 128, "value_dim": 128},
    "head_dim 256": {"head_dim": 256, "value_dim": 256},
    "head_dim 512": {"head_dim": 512, "value_dim": 512},
    "head_dim 80": {"head_dim": 80, "value_dim": 80},
    "value dim unlike head_dim": {"head_dim": 192, "value_dim": 128},
    "packed sequences": {"packed": True},
    "kv_lengths": {"has_kv_lengths": True},
    "band_offsets": {"has_band_offsets": True},
    "softcap": {"softcap": 30.0},
    "bias": {"bias_shape": (1, 4, 256, 256)},
    "bias, its gradient": {"bias_shape": (1, 4, 256, 256), "bias_needs_grad": True},
    "ALiBi": {"has_alibi": True},
    "sinks": {"has_sinks": True},
    "dropout": {"dropout_p": 0.1},
    "deterministic backward": {"needs_grad": True, "deterministic": True},
}

# The same for a step of decoding, a plain one being grouped heads on a contiguous cache.
DECODE_FEATURES: dict[str, dict[str, Any]] = {
    "KV cache": {},
    "paged KV": {"page_size": 16},
    "append + rotary": {"len_new": 1, "rotary_dim": 64},
    "batch-invariant decoding": {"batch_invariant": True},
}


class BackendInfo(NamedTuple):
    """Whether a backend can run anything on this machine."""

    name: str
    available: bool
    reason: str  # why it is not available; empty if it is


class BackendList(tuple[BackendInfo, ...]):
    """Every backend, best first; prints as a table."""

    __slots__ = ()

    def as_dicts(self) -> list[dict[str, Any]]:
        """The entries as JSON can hold them."""
        return [info._asdict() for info in self]

    def __str__(self) -> str:
        rows = [(info.name, "yes" if info.available else "no", info.reason) for info in self]
        return table([("backend", "available", "reason"), *rows])


class Support(NamedTuple):
    """Whether one backend can run one feature in one dtype on one kind of device."""

    feature: str
    backend: str
    device_type: str
    dtype: str  # a key of DTYPES
    supported: bool
    reason: str  # why not; empty if it can


class SupportMatrix(tuple[Support, ...]):
    """Every feature, backend, device and dtype; prints as a table of features by backends."""

    __slots__ = ()

    def as_dicts(self) -> list[dict[str, Any]]:
        """The entries as JSON can hold them."""
        return [entry._asdict() for entry in self]

    def __str__(self) -> str:
        # A column for each backend and device that belong together.
        places = dict.fromkeys(entry[1:3] for entry in self if entry.supported)
        cells: dict[str, dict[tuple[str, str], list[str]]] = {}
        for entry in self:
            row = cells.setdefault(entry.feature, {place: [] for place in places})
            if entry.supported:
                row[entry[1:3]].append(entry.dtype)
        header = ["feature", *(f"{backend} on {device}" for backend, device in places)]
        body = [
            [feature, *(" ".join(dtypes) or "-" for dtypes in row.values())]
            for feature, row in cells.items()
        ]
        return table([header, *body])


def backends() -> BackendList:
    """Every backend, best first, and whether it can run anything on this machine."""
    return BackendList(_availability(backend) for backend in ORDER)


def devices_of(backend: Backend) -> tuple[str, ...]:
    """The kinds of device, of "cpu" and "cuda", on which a backend takes a plain problem here."""
    return tuple(
        device_type
        for device_type in DEVICE_TYPES
        if not all(backend.why_not(sample_problem(device_type, dtype)) for dtype in DTYPES)
    )


def support_matrix(device_types: tuple[str, ...] | None = None) -> SupportMatrix:
    """What every backend can run here, by feature and dtype; nothing is run.

    Args:
        device_types: default the CPU and, where there is one, the GPU.
    """
    if device_types is None:
        device_types = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return SupportMatrix(
        _support(feature, backend, device_type, dtype)
        for feature in (*FEATURES, *DECODE_FEATURES)
        for backend in ORDER
        for device_type in device_types
        for dtype in DTYPES
    )


def sample_problem(device_type: str, dtype: str, feature: str = "forward") -> Problem:
    """A small self-attention with one feature."""
    plain = Problem(
        dtype=DTYPES[dtype],
        device_type=device_type,
        batch=2,
        heads_q=4,
        heads_kv=4,
        len_q=256,
        len_k=256,
        head_dim=64,
        value_dim=64,
        scale=0.125,
    )
    changes = dict(FEATURES[feature])
    if "bias_shape" in changes:
        changes["bias_dtype"] = plain.dtype
        changes["needs_grad"] = changes.get("bias_needs_grad", False)
    return plain._replace(**changes)


def reasons_against(backend: Backend, problem: Problem | DecodeProblem) -> list[str]:
    """Every reason why a backend cannot run this problem, whichever kind it is."""
    if isinstance(problem, DecodeProblem):
        return list(backend.decode_why_not(problem))
    return list(backend.why_not(problem))


def sample_decode_problem(device_type: str, dtype: str, feature: str) -> DecodeProblem:
    """A step of decoding with one feature."""
    plain = DecodeProblem(DTYPES[dtype], device_type, 2, 8, 2, 1, 1024, 64, 64, scale=0.125)
    return plain._replace(**DECODE_FEATURES[feature])


def _support(feature: str, backend: Backend, device_type: str, dtype: str) -> Support:
    decoding = feature in DECODE_FEATURES
    sample = sample_decode_problem if decoding else sample_problem
    reasons = reasons_against(backend, sample(device_type, dtype, feature))
    return Support(feature, backend.NAME, device_type, dtype, not reasons, "; ".join(reasons))


def _availability(backend: Backend) -> BackendInfo:
    """Available if a plain problem runs on any device; else the reasons nearest to running."""
    answers = [
        backend.why_not(sample_problem(device_type, dtype))
        for device_type in DEVICE_TYPES
        for dtype in DTYPES
    ]
    fewest = min(answers, key=len)
    return BackendInfo(backend.NAME, not fewest, "; ".join(fewest))
