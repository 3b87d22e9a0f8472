"""Who competes: our kernel, the naive formula and torch's SDPA, all called the same way."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fused_attention import Band, attention

from .cases import DTYPES, Case, Inputs

OURS, NAIVE, SDPA, FLEX = "ours", "naive", "sdpa", "flex"
FLASH, EFFICIENT, CUDNN, MATH = "flash", "efficient", "cudnn", "math"  # torch's kernels on GPUs
LABELS = {
    OURS: "fused_attention",
    NAIVE: "naive formula",
    SDPA: "torch SDPA",
    FLEX: "torch's FlexAttention, compiled",
    FLASH: "torch's flash-attention",
    EFFICIENT: "torch's efficient attention",
    CUDNN: "cuDNN",
    MATH: "torch's unfused attention",
}
FUSED_ON_GPU = (FLASH, EFFICIENT, CUDNN)


@dataclass(frozen=True)
class Contender:
    """A name and a function of (case, inputs) that returns the attention output.

    `around` makes what has to surround its calls; whoever times them enters it beforehand.
    """

    name: str
    attend: Callable[[Case, Inputs], Tensor]
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    differentiable: bool = True

    def forward(self, case: Case, inputs: Inputs) -> Callable[[], Tensor]:
        """A call of the forward pass alone: inference, no input requires a gradient."""
        plain = inputs.without_gradients()

        def call() -> Tensor:
            with torch.no_grad():
                return self.attend(case, plain)

        return call

    def backward(self, case: Case, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
        """A call of the backward pass alone, over one forward pass that is run here."""
        leaves = (inputs.query, inputs.key, inputs.value)
        with self.around():
            out = self.attend(case, inputs)
        return lambda: torch.autograd.grad(out, leaves, inputs.grad_out, retain_graph=True)

    def training_step(self, case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
        """Forward and backward in one: (out, dq, dk, dv)."""
        out = self.attend(case, inputs)
        leaves = (inputs.query, inputs.key, inputs.value)
        return out, *torch.autograd.grad(out, leaves, inputs.grad_out)


def ours(case: Case, inputs: Inputs) -> Tensor:
    return attention(inputs.query, inputs.key, inputs.value, band=case.band)


def naive(case: Case, inputs: Inputs) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V, step by step, in the inputs' dtype."""
    groups = case.heads_q // case.heads_kv
    key, value = inputs.key, inputs.value
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = inputs.query @ key.transpose(-2, -1) * (1 / math.sqrt(case.head_dim))
    if inputs.mask is not None:
        scores = torch.where(inputs.mask, scores, -math.inf)
    return scores.softmax(dim=-1) @ value


def sdpa(case: Case, inputs: Inputs) -> Tensor:
    """torch's own fused attention, with a boolean mask only where `is_causal` cannot say it."""
    causal = inputs.mask is not None and is_sdpa_causal(case)
    return scaled_dot_product_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        attn_mask=None if causal else inputs.mask,
        is_causal=causal,
        enable_gqa=case.heads_q != case.heads_kv,
    )


def is_sdpa_causal(case: Case) -> bool:
    """Whether SDPA's top-left `is_causal` means the case's band."""
    causal = Band.causal(offset=0).resolve(case.len_q, case.len_k)
    return case.len_q == case.len_k and case.band.resolve(case.len_q, case.len_k) == causal


def sdpa_needs_mask(case: Case) -> bool:
    """Whether torch has to read the band from a tensor; on GPUs it knows every causal mask."""
    told = is_sdpa_causal(case) or (case.device == "cuda" and case.is_causal)
    return not (case.hides_nothing or told)


CONTENDERS = (Contender(OURS, ours), Contender(NAIVE, naive), Contender(SDPA, sdpa))


def contender(name: str) -> Contender:
    return next(c for c in CONTENDERS if c.name == name)


def skip_reason(name: str, case: Case, backward: bool) -> str | None:
    """Why a contender is left out of a case: its score matrices would not fit into memory."""
    without_scores = name in (OURS, FLEX, *FUSED_ON_GPU) or (
        name == SDPA and not sdpa_needs_mask(case)
    )
    if without_scores:
        return None
    copies = 5 if backward else 3  # S, P and what softmax and the products make beside them
    itemsize = 4 if name == MATH else DTYPES[case.dtype].itemsize  # it computes in fp32
    scores = case.batch * case.heads_q * case.len_q * case.len_k * itemsize
    needed, free = copies * scores, available_memory(case.device)
    if free is None or needed < free / 2:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def available_memory(device: str = "cpu") -> int | None:
    """Bytes of the device's memory that are free, or None where the system does not tell."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
