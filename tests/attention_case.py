"""One attention problem for a test: its description, and how it becomes tensors.

    inputs = AttentionCase("causal", band=Band.causal(), dtype=torch.bfloat16).make(seed=0)
    out, lse = attention(inputs.query, inputs.key, inputs.value, return_lse=True, **inputs.options)
    inputs.assert_forward(out, lse)

The list of problems to test stands in shapes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from attention_inputs import AttentionInputs, statistics_dtype
from torch import Tensor

from fused_attention.masks import Band


@dataclass(frozen=True)
class AttentionCase:
    """One attention problem, without its numbers.

    Attributes:
        heads_kv, len_k, value_dim: default to heads_q, len_q, head_dim.
        bias: the dimensions that the bias has, one letter each of "bhqk", "1" where it broadcasts.
        bias_hides: share of the bias that is -inf; query 0 of every head is hidden altogether.
        alibi: dimensions of the slopes, "h" or "bh".
        seq_lens_q, seq_lens_k: lengths of the sequences of a packed batch; they replace batch,
            len_q and len_k. seq_lens_k defaults to seq_lens_q.
        trailing: packed rows beyond the last sequence, which hold NaN.
        kv_lengths: keys that exist per batch row; what lies beyond holds NaN.
        layout: "contiguous" [B, H, L, D]; "swapped", a view of [B, L, H, D]; "sliced", rows of a
            wider tensor; "shared", one key and value for the whole batch (stride 0).
        magnitude: factor on the queries, to make the softmax peaked.
    """

    name: str
    batch: int = 2
    heads_q: int = 2
    heads_kv: int | None = None
    len_q: int = 35
    len_k: int | None = None
    head_dim: int = 16
    value_dim: int | None = None
    dtype: torch.dtype = torch.float32
    band: Band = Band()
    scale: float | None = None
    softcap: float = 0.0
    bias: str | None = None
    bias_hides: float = 0.25
    alibi: str | None = None
    sinks: bool = False
    dropout_p: float = 0.0
    kv_lengths: tuple[int, ...] | None = None
    band_offsets: tuple[int, ...] | None = None
    seq_lens_q: tuple[int, ...] | None = None
    seq_lens_k: tuple[int, ...] | None = None
    trailing: int = 0
    layout: str = "contiguous"
    magnitude: float = 1.0

    def __str__(self) -> str:
        return self.name

    @property
    def packed(self) -> bool:
        return self.seq_lens_q is not None

    def with_dtype(self, dtype: torch.dtype) -> AttentionCase:
        return replace(self, dtype=dtype)

    def make(self, seed: int = 0, device: torch.device | str = "cpu") -> AttentionInputs:
        """The problem with numbers: the same ones for a seed, on every device."""
        return _Maker(self, seed, torch.device(device)).inputs()


class _Maker:
    """Draws the tensors of a case."""

    def __init__(self, case: AttentionCase, seed: int, device: torch.device) -> None:
        self.case, self.seed, self.device = case, seed, device
        self.generator = torch.Generator().manual_seed(seed)
        self.heads_kv = case.heads_q if case.heads_kv is None else case.heads_kv
        self.value_dim = case.head_dim if case.value_dim is None else case.value_dim
        self.len_k = case.len_q if case.len_k is None else case.len_k
        self.lens_q = case.seq_lens_q or ()
        self.lens_k = self.lens_q if case.seq_lens_k is None else case.seq_lens_k
        self.batch = len(self.lens_q) if case.packed else case.batch

    def inputs(self) -> AttentionInputs:
        case = self.case
        return AttentionInputs(
            case,
            self.seed,
            query=self._operand(case.heads_q, case.len_q, self.lens_q, case.head_dim, True),
            key=self._operand(self.heads_kv, self.len_k, self.lens_k, case.head_dim, False),
            value=self._operand(self.heads_kv, self.len_k, self.lens_k, self.value_dim, False),
            bias=self._bias(),
            alibi_slopes=self._slopes(),
            sinks=self._sinks(),
            kv_lengths=self._integers(case.kv_lengths),
            band_offsets=self._integers(case.band_offsets),
            cu_seqlens_q=self._ends(self.lens_q),
            cu_seqlens_k=self._ends(self.lens_k),
            dropout_seed=0x1234_5678_9ABC + self.seed,
            dropout_offset=8 * self.seed + 5,
        )

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)

    def _integers(self, values: Sequence[int] | None) -> Tensor | None:
        if values is None:
            return None
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def _ends(self, lens: Sequence[int]) -> Tensor | None:
        return self._integers((0, *accumulate(lens))) if self.case.packed else None

    def _operand(
        self, heads: int, length: int, lens: Sequence[int], dim: int, is_query: bool
    ) -> Tensor:
        """A query, key or value in its layout, with NaN where nothing may look."""
        case = self.case
        if case.packed:
            used = sum(lens)
            tensor = self._normal((used + case.trailing, heads, dim))
            tensor[used:] = torch.nan
        else:
            shared = case.layout == "shared" and not is_query
            tensor = self._normal((1 if shared else self.batch, heads, length, dim))
            if case.kv_lengths is not None and not is_query:
                exists = torch.arange(length) < torch.tensor(case.kv_lengths)[:, None]
                tensor = tensor.masked_fill(~exists[:, None, :, None], torch.nan)
        if is_query:
            tensor = tensor * case.magnitude
        return self._laid_out(tensor.to(self.device, case.dtype))

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if self.case.layout == "shared" and not self.case.packed:
            return tensor.expand(self.batch, -1, -1, -1)
        if self.case.layout == "swapped":
            length, heads = (0, 1) if self.case.packed else (1, 2)
            return tensor.transpose(length, heads).contiguous().transpose(length, heads)
        if self.case.layout == "sliced":
            return torch.nn.functional.pad(tensor, (3, 5), value=torch.nan)[..., 3:-5]
        return tensor

    def _slopes(self) -> Tensor | None:
        shape = {"h": (self.case.heads_q,), "bh": (self.batch, self.case.heads_q)}
        if self.case.alibi is None:
            return None
        return self._normal(shape[self.case.alibi]).abs().to(self.device, torch.float32)

    def _sinks(self) -> Tensor | None:
        if not self.case.sinks:
            return None
        dtype = statistics_dtype(self.case.dtype)
        return self._normal((self.case.heads_q,)).to(self.device, dtype)

    def _bias(self) -> Tensor | None:
        case = self.case
        if case.bias is None:
            return None
        sizes = dict(zip("bhqk", (self.batch, case.heads_q, case.len_q, self.len_k), strict=True))
        shape = [sizes.get(letter, 1) for letter in case.bias]
        bias = self._normal(shape)
        hidden = torch.rand(shape, generator=self.generator) < case.bias_hides
        if case.bias[2] == "q" and case.bias_hides:
            hidden[:, :, :1] = True
        return bias.masked_fill(hidden, -torch.inf).to(self.device, case.dtype)
