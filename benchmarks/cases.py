"""Benchmark cases: what is measured, in named sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_attention import Band

from .flops import forward_flops, visible_pairs

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Inputs(NamedTuple):
    """Tensors of one case. `mask` is made outside the timed region, for the peers that need one."""

    query: Tensor  # [B, Hq, Lq, D]
    key: Tensor  # [B, Hkv, Lk, D]
    value: Tensor  # [B, Hkv, Lk, D]
    grad_out: Tensor  # [B, Hq, Lq, D]
    mask: Tensor | None  # bool [Lq, Lk], True = visible; None when the band hides nothing


@dataclass(frozen=True)
class Case:
    """One attention problem. Causal and window masks are bottom-right aligned."""

    batch: int
    heads_q: int
    heads_kv: int
    len_q: int
    len_k: int
    head_dim: int
    band: Band = Band.full()
    dtype: str = "fp32"
    backward: bool = True
    series: str = ""  # cases of one series differ in length only and make one picture

    @property
    def name(self) -> str:
        """Short and unique, e.g. "B1 H32/8 L2048 D128 causal fp32"."""
        heads = f"H{self.heads_q}"
        if self.heads_kv != self.heads_q:
            heads += f"/{self.heads_kv}"
        length = f"L{self.len_q}" if self.len_q == self.len_k else f"L{self.len_q}x{self.len_k}"
        return f"B{self.batch} {heads} {length} D{self.head_dim} {self.band} {self.dtype}"

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "backward") if self.backward else ("forward",)

    @property
    def visible_pairs(self) -> int:
        """Query-key pairs that the band leaves visible, for one head of one batch row."""
        return visible_pairs(self.band, self.len_q, self.len_k)

    @property
    def hides_nothing(self) -> bool:
        return self.visible_pairs == self.len_q * self.len_k

    @property
    def forward_flops(self) -> int:
        heads = self.batch * self.heads_q
        return heads * forward_flops(self.band, self.len_q, self.len_k, self.head_dim)

    @property
    def io_bytes(self) -> int:
        """Bytes of query, key, value and out: the least that a forward call moves."""
        q_rows = 2 * self.heads_q * self.len_q
        kv_rows = 2 * self.heads_kv * self.len_k
        return self.batch * (q_rows + kv_rows) * self.head_dim * DTYPES[self.dtype].itemsize

    def make_inputs(self, seed: int = 0) -> Inputs:
        """Standard normal tensors, the same for every contender; q, k and v require grad."""
        generator = torch.Generator().manual_seed(seed)

        def normal(heads: int, length: int, requires_grad: bool) -> Tensor:
            shape = (self.batch, heads, length, self.head_dim)
            values = torch.randn(shape, generator=generator).to(DTYPES[self.dtype])
            return values.requires_grad_(requires_grad)

        return Inputs(
            query=normal(self.heads_q, self.len_q, self.backward),
            key=normal(self.heads_kv, self.len_k, self.backward),
            value=normal(self.heads_kv, self.len_k, self.backward),
            grad_out=normal(self.heads_q, self.len_q, False),
            mask=None if self.hides_nothing else self.band.mask(self.len_q, self.len_k),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        values = dataclasses.asdict(self)
        values["band"] = dataclasses.asdict(self.band)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Case:
        return cls(**{**values, "band": Band(**values["band"])})


def square(batch: int, heads: int, length: int, head_dim: int, **options: Any) -> Case:
    """Self-attention with as many key heads as query heads, unless `heads_kv` says otherwise."""
    heads_kv = options.pop("heads_kv", heads)
    return Case(batch, heads, heads_kv, length, length, head_dim, **options)


def with_dtypes(cases: Iterable[Case], dtypes: Iterable[str]) -> tuple[Case, ...]:
    return tuple(dataclasses.replace(case, dtype=dtype) for dtype in dtypes for case in cases)


def ladder(series: str, lengths: Iterable[int], heads: int, **options: Any) -> tuple[Case, ...]:
    """One problem at several lengths, head dimension 64."""
    return tuple(square(1, heads, length, 64, series=series, **options) for length in lengths)


WINDOW_256 = Band.sliding(256)
DECODE = Case(1, 32, 8, 1, 4096, 128, band=Band.causal(), backward=False)

# Small enough that a laptop with two cores finishes in about a minute.
_DEMO = (
    *ladder("causal", (256, 512, 1024, 2048, 4096), 4, band=Band.causal(), backward=False),
    *ladder("sliding window of 256", (512, 1024, 2048), 4, band=WINDOW_256, backward=False),
    *ladder("sliding window of 256", (4096,), 4, band=WINDOW_256),
    square(1, 8, 1024, 64),
    square(1, 8, 1024, 64, band=Band.causal(), dtype="bf16"),
    square(1, 16, 1024, 128, band=Band.causal(), heads_kv=4, backward=False),
    DECODE,
)

_CPU = (
    *ladder("BERT-base", (17, 128, 512, 1024, 2048), 12),
    square(16, 12, 128, 64),
    square(64, 12, 64, 64),
    square(1, 8, 1024, 64),
    square(1, 8, 2048, 64, band=Band.causal()),
    square(1, 8, 2048, 128, band=Band.causal()),
    square(1, 32, 2048, 128, heads_kv=8, band=Band.causal()),
    square(1, 4, 4096, 64, band=WINDOW_256),
    square(1, 4, 4096, 64, band=Band.sliding(512)),
    DECODE,
)

CASE_SETS: dict[str, tuple[Case, ...]] = {
    "demo": _DEMO,
    "cpu": with_dtypes(_CPU, ("fp32", "bf16")),
}


@dataclass(frozen=True)
class MemoryLadder:
    """Lengths at which peak memory is measured; the peers, slower and fatter, stop earlier."""

    lengths: tuple[int, ...]
    peers_up_to: int


MEMORY_LADDERS: dict[str, MemoryLadder] = {
    "demo": MemoryLadder((1024, 2048, 4096, 8192, 16384), peers_up_to=8192),
    "cpu": MemoryLadder((1024, 2048, 4096, 8192, 16384, 32768), peers_up_to=16384),
}


def case_set(name: str, dtypes: Iterable[str] | None = None) -> tuple[Case, ...]:
    """The cases of a named set; `dtypes` replaces the set's own choice of dtypes.

    Raises ValueError for a name that is not in CASE_SETS or DTYPES.
    """
    if name not in CASE_SETS:
        raise ValueError(f"set: must be one of {', '.join(CASE_SETS)}, got {name!r}")
    cases = CASE_SETS[name]
    if dtypes is None:
        return cases
    wanted = tuple(dtypes)
    for dtype in wanted:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return tuple(dict.fromkeys(with_dtypes(cases, wanted)))


def memory_cases(name: str) -> tuple[Case, ...]:
    """One fp32 head of 64 dimensions without a mask: forward alone, then with backward."""
    lengths = MEMORY_LADDERS[name].lengths
    return tuple(
        square(1, 1, n, 64, backward=backward) for backward in (False, True) for n in lengths
    )
