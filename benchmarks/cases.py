"""Benchmark cases: what is measured, in named sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, replace
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
    mask: Tensor | None  # bool [Lq, Lk], True = visible; None where no peer needs it

    def without_gradients(self) -> Inputs:
        """The same memory, as inference sees it."""
        query, key, value = (tensor.detach() for tensor in self[:3])
        return self._replace(query=query, key=key, value=value)


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
    device: str = "cpu"

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
    def is_causal(self) -> bool:
        """Whether the mask is the causal one and hides something."""
        causal = Band.causal().resolve(self.len_q, self.len_k)
        return self.band.resolve(self.len_q, self.len_k) == causal and not self.hides_nothing

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
        """Standard normal tensors, the same for every contender; q, k and v require grad.

        The mask is there for peers that cannot be told the band: on a GPU they know causal ones.
        """
        generator = torch.Generator(self.device).manual_seed(seed)

        def normal(heads: int, length: int, requires_grad: bool) -> Tensor:
            shape = (self.batch, heads, length, self.head_dim)
            values = torch.randn(shape, generator=generator, device=self.device)
            return values.to(DTYPES[self.dtype]).requires_grad_(requires_grad)

        told = self.hides_nothing or (self.device == "cuda" and self.is_causal)
        return Inputs(
            query=normal(self.heads_q, self.len_q, self.backward),
            key=normal(self.heads_kv, self.len_k, self.backward),
            value=normal(self.heads_kv, self.len_k, self.backward),
            grad_out=normal(self.heads_q, self.len_q, False),
            mask=None if told else self.band.mask(self.len_q, self.len_k).to(self.device),
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
    replace(DECODE, batch=8),
)


def on_gpu(cases: Iterable[Case], dtype: str = "bf16") -> tuple[Case, ...]:
    return tuple(dataclasses.replace(case, device="cuda", dtype=dtype) for case in cases)


def decoding(
    batch: int, heads: int, heads_kv: int, len_k: int, dim: int = 128, **more: Any
) -> Case:
    """One query per sequence against `len_k` keys, unless `len_q` says otherwise."""
    options = {"len_q": 1, "band": Band.causal(), "backward": False, **more}
    return Case(batch, heads, heads_kv, len_k=len_k, head_dim=dim, **options)


def with_causal(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Each case without a mask, then causal."""
    cases = tuple(cases)
    return (*cases, *(dataclasses.replace(case, band=Band.causal()) for case in cases))


CAUSAL = Band.causal()
K = 1024
# The grid of the flash-attention papers: 16 Ki tokens, a model width of 2048.
_PAPER = with_causal(
    square(batch, 2048 // dim, 16 * K // batch, dim)
    for dim in (64, 128, 256)
    for batch in (32, 16, 8, 4, 2, 1)
)
_TRAINING = (
    *with_causal(square(4, 48, n * K, 128) for n in (1, 2, 4, 8)),
    # Llama 3.1 70B; GPT-2; BERT-base; ModernBERT's local layers
    *with_causal(square(1, 64, n * K, 128, heads_kv=8) for n in (2, 4, 8, 16, 32)),
    square(32, 12, K, 64, band=CAUSAL),
    square(32, 12, 512, 64),
    square(1, 12, 8 * K, 64, band=Band.window(64, 64)),
    # ViT-L/14, SDXL and Flux
    square(64, 16, 577, 64),
    square(2, 10, 4 * K, 64),
    square(1, 24, 4608, 128),
)
_WINDOWS = (
    # gpt-oss; Mistral 7B; Gemma 2 9B, Gemma 3 27B and 1B
    *(
        square(2, 64, n * K, 64, heads_kv=8, band=Band.sliding(width))
        for width in (128, K)
        for n in (2, 8, 32)
    ),
    *(square(1, 32, n * K, 128, heads_kv=8, band=Band.sliding(4 * K)) for n in (8, 16, 32)),
    square(1, 16, 8 * K, 256, heads_kv=8, band=Band.sliding(4 * K)),
    square(1, 32, 8 * K, 128, heads_kv=16, band=Band.sliding(K)),
    *(square(1, 4, n * K, 256, heads_kv=1, band=Band.sliding(512)) for n in (8, 32)),
)
_INFERENCE = (
    # A chunk of a prompt after what the cache holds.
    Case(4, 32, 8, 512, 512, 128, band=CAUSAL, backward=False),
    Case(2, 32, 8, 512, 4 * K, 128, band=CAUSAL, backward=False),
    Case(1, 64, 8, 512, 4 * K, 128, band=CAUSAL, backward=False),
    # Llama 3.1 8B; Qwen 3 30B; many heads; one key head; guessed ahead; a window of 4096
    *(decoding(batch, 32, 8, n * K) for n in (4, 32) for batch in (1, 8, 32)),
    decoding(128, 32, 8, 4 * K),
    *(decoding(1, 32, 4, n * K) for n in (1, 8, 128)),
    decoding(16, 32, 32, 2000),
    decoding(16, 64, 1, 4 * K),
    decoding(8, 32, 8, 4 * K, len_q=4),
    decoding(8, 32, 8, 32 * K, band=Band.sliding(4 * K)),
)
_QUICK = (
    square(4, 16, 4 * K, 128),
    square(4, 16, 4 * K, 128, band=CAUSAL),
    square(4, 32, 2 * K, 64, band=CAUSAL),
    square(1, 32, 4 * K, 128, heads_kv=8, band=CAUSAL),
    square(1, 64, 8 * K, 64, heads_kv=8, band=Band.sliding(K)),
    Case(2, 32, 8, 512, 4 * K, 128, band=CAUSAL, backward=False),
    decoding(32, 32, 8, 4 * K),
)

CASE_SETS: dict[str, tuple[Case, ...]] = {
    "demo": _DEMO,
    "cpu": with_dtypes(_CPU, ("fp32", "bf16", "fp16")),
    "cuda": (
        *on_gpu((*_PAPER, *_TRAINING, *_WINDOWS, *_INFERENCE)),
        *on_gpu((square(4, 32, 4 * K, dim, band=CAUSAL) for dim in (64, 128)), "fp16"),
    ),
    "cuda-quick": on_gpu(_QUICK),
}


@dataclass(frozen=True)
class MemoryLadder:
    """Lengths at which a set measures peak memory; the peers, slower and fatter, stop earlier."""

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
