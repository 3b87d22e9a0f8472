"""One additive attention for a test: its description, its tensors, its exact result, its budget.

    inputs = AdditiveCase("causal", band=Band.causal(), dtype=torch.bfloat16).make(seed=0)
    inputs.assert_results(*inputs.run("cpu"))

The exact result is the plain formula under autograd in fp64, the baseline the same in the kernel's
dtype; see budget.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from budget import GRADIENT_FACTOR, assert_within_budget
from torch import Tensor

from fused_attention import Band, additive_attention

NAMES = ("query", "key", "value", "v")
_FEW, _DRAWS = 64, 3  # fewer results than that have an honest baseline in several draws only


@dataclass(frozen=True)
class AdditiveCase:
    """One problem, without its numbers.

    Attributes:
        heads: 0 is operands of three dimensions.
        v_heads: whether each head has a v of its own.
        key_lengths: keys that exist per batch row; what lies beyond holds NaN.
        layout: "contiguous" [B, H, L, D]; "swapped", a view of [B, L, H, D]; "sliced", rows of a
            wider tensor; "shared", one key and value for the whole batch (stride 0).
        magnitude: factor on the projections, to saturate the tanh.
        v_magnitude: factor on v, to make the softmax peaked.
        column_scales: more factors on the projections, for 32 columns each; the rest keep theirs.
        outliers: a query and two keys hold numbers whose exponentials overflow; two of them cancel.
    """

    name: str
    batch: int = 2
    heads: int = 2
    len_q: int = 19
    len_k: int = 27
    dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    band: Band = Band()
    key_lengths: tuple[int, ...] | None = None
    v_heads: bool = False
    layout: str = "contiguous"
    magnitude: float = 1.0
    v_magnitude: float = 1.0
    column_scales: tuple[float, ...] = ()
    outliers: bool = False

    def __str__(self) -> str:
        return self.name

    def with_dtype(self, dtype: torch.dtype) -> AdditiveCase:
        return replace(self, dtype=dtype)

    def make(self, seed: int = 0, device: torch.device | str = "cpu") -> AdditiveInputs:
        """The problem with numbers: the same ones for a seed, on every device."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        heads = max(self.heads, 1)
        rows = 1 if self.layout == "shared" else self.batch
        query = normal(self.batch, heads, self.len_q, self.dim) * self.magnitude
        key = normal(rows, heads, self.len_k, self.dim) * self.magnitude
        value = normal(rows, heads, self.len_k, self.value_dim)
        for part, scale in enumerate(self.column_scales):
            for tensor in (query, key):
                tensor[..., 32 * part : 32 * (part + 1)] *= scale
        if self.outliers:
            query[0, 0, -1, 0], key[0, 0, self.len_k // 2, 0] = 55.0, -54.5
            key[0, -1, 1] = 300.0
        v = normal(*([heads] if self.v_heads else []), self.dim) * self.v_magnitude
        if self.key_lengths is not None:
            exists = torch.arange(self.len_k) < torch.tensor(self.key_lengths)[:, None]
            hidden = ~exists[:, None, :, None]
            key, value = (x.masked_fill(hidden, torch.nan) for x in (key, value))
        operands = [self._laid_out(x.to(device, self.dtype)) for x in (query, key, value)]
        if self.layout == "shared":
            operands[1:] = [x.expand(self.batch, -1, -1, -1) for x in operands[1:]]
        if not self.heads:
            operands = [x.squeeze(1) for x in operands]
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return AdditiveInputs(self, seed, *operands, v.to(device, wide))

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if self.layout == "swapped":
            return tensor.transpose(1, 2).contiguous().transpose(1, 2)
        if self.layout == "sliced":
            wider = torch.cat([tensor, torch.full_like(tensor, torch.nan)], dim=-1)
            return wider[..., : tensor.shape[-1]]
        return tensor


@dataclass(frozen=True)
class AdditiveInputs:
    """Tensors of one problem, named and shaped as the arguments of `additive_attention`.

    They are judged by the numbers that the case makes of the seed: others need a case of their own.
    """

    case: AdditiveCase
    seed: int
    query: Tensor
    key: Tensor
    value: Tensor
    v: Tensor

    @property
    def options(self) -> dict[str, Any]:
        lengths = self.case.key_lengths
        if lengths is not None:
            lengths = torch.tensor(lengths, dtype=torch.int32, device=self.query.device)
        return {"band": self.case.band, "key_lengths": lengths}

    @cached_property
    def upstream(self) -> tuple[Tensor, Tensor]:
        """Gradients of out, in the dtype, and of lse, 0 where no key is seen."""
        generator = torch.Generator().manual_seed(1)
        out, lse = self.plain(torch.float64, gradients=False)
        grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (out, lse)]
        grads[1] = grads[1].masked_fill(lse.cpu().isinf(), 0.0)
        device = self.query.device
        return grads[0].to(device, self.case.dtype), grads[1].to(device, self.v.dtype)

    def run(self, backend: str) -> tuple[Tensor, ...]:
        """out, lse and the gradients of query, key, value and v."""
        leaves = [x.detach().requires_grad_() for x in (self.query, self.key, self.value, self.v)]
        results = additive_attention(*leaves, return_lse=True, backend=backend, **self.options)
        return (*results, *torch.autograd.grad(results, leaves, self.upstream))

    def plain(self, dtype: torch.dtype, gradients: bool = True) -> tuple[Tensor, ...]:
        """The same as a few operations of torch in a dtype, differentiated by autograd."""
        leaves = [x.detach().to(dtype) for x in (self.query, self.key, self.value, self.v)]
        visible = self._visible()
        exists = visible.any(-2, keepdim=True).mT
        leaves[1:3] = [x.masked_fill(~exists, 0.0) for x in leaves[1:3]]
        query, key, value, v = (x.requires_grad_(gradients) for x in leaves)
        v = v[:, None, None] if v.dim() == 2 else v
        scores = (v * (query.unsqueeze(-2) + key.unsqueeze(-3)).tanh()).sum(-1)
        dead = ~visible.any(-1)
        scores = scores.masked_fill(~visible & ~dead[..., None], -torch.inf)
        lse = scores.logsumexp(-1).masked_fill(dead, -torch.inf)
        out = (scores.softmax(-1) @ value).masked_fill(dead[..., None], 0.0)
        if not gradients:
            return out, lse
        upstream = [grad.to(dtype) for grad in self.upstream]
        return (*(x.detach() for x in (out, lse)), *self._pull_back((out, lse), leaves, upstream))

    def assert_results(self, *results: Tensor, name: str = "") -> None:
        """Out, lse and the gradients are within their budgets and of the right dtypes."""
        small = any(result.numel() < _FEW for result in results)
        draws = [_judged(self.case, self.seed + n) for n in range(_DRAWS if small else 1)]
        inputs = (self.query, self.v, self.query, self.key, self.value, self.v)
        names = ("out", "lse", *(f"d{x}" for x in NAMES))
        for index, (result, label) in enumerate(zip(results, names, strict=True)):
            assert result.dtype == inputs[index].dtype, label
            factor = 2.0 if index < 2 else GRADIENT_FACTOR
            (exact, baseline), *more = ((draw[0][index], draw[1][index]) for draw in draws)
            more = more if result.numel() < _FEW else []
            options = {"factor": factor, "name": f"{name}{label}", "more_draws": more}
            assert_within_budget(result.cpu(), exact, baseline, **options)

    def _visible(self) -> Tensor:
        """[B, H, Lq, Lk] or [B, Lq, Lk], True where the query sees the key."""
        case, device = self.case, self.query.device
        mask = case.band.mask(case.len_q, case.len_k, self.options["key_lengths"], device)
        shape = (*self.query.shape[:-1], case.len_k)
        mask = mask.expand(case.batch, max(case.heads, 1), case.len_q, case.len_k)
        return mask.reshape(shape)

    @staticmethod
    def _pull_back(
        results: tuple[Tensor, ...], leaves: list[Tensor], upstream: list[Tensor]
    ) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(results, leaves, upstream, allow_unused=True)
        pairs = zip(found, leaves, strict=True)
        return tuple(torch.zeros_like(x) if grad is None else grad for grad, x in pairs)


@lru_cache(maxsize=512)
def _judged(case: AdditiveCase, seed: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The exact results and their baselines, which do not depend on who is judged."""
    low = torch.float32 if case.dtype == torch.float64 else case.dtype
    inputs = case.make(seed)
    return inputs.plain(torch.float64), inputs.plain(low)


CASES = (
    AdditiveCase("plain"),
    AdditiveCase("three_dimensions", heads=0),
    AdditiveCase("one_of_everything", batch=1, heads=1, len_q=1, len_k=1, dim=1, value_dim=1),
    AdditiveCase("one_query", len_q=1, len_k=70),
    AdditiveCase("one_key", len_q=33, len_k=1),
    AdditiveCase("odd", len_q=37, len_k=67, dim=19, value_dim=13),
    AdditiveCase("tiles", batch=1, heads=1, len_q=64, len_k=128, dim=64, value_dim=64),
    AdditiveCase("wide", batch=1, len_q=17, len_k=40, dim=300, value_dim=200),
    AdditiveCase("narrow_value", dim=48, value_dim=3),
    AdditiveCase("wide_value", dim=5, value_dim=130),
    AdditiveCase("v_per_head", heads=3, v_heads=True),
    AdditiveCase("causal", len_q=40, len_k=40, band=Band.causal()),
    AdditiveCase("causal_dead_rows", len_q=40, len_k=23, band=Band.causal()),
    AdditiveCase("window", len_q=50, len_k=60, band=Band.window(5, 3)),
    AdditiveCase("window_of_nobody", band=Band.window(1, 1, offset=90)),
    AdditiveCase("lengths", batch=4, len_k=70, key_lengths=(0, 1, 70, 33)),
    AdditiveCase("lengths_causal", batch=3, key_lengths=(5, 27, 0), band=Band.causal()),
    AdditiveCase("swapped", layout="swapped", key_lengths=(20, 9)),
    AdditiveCase("sliced", layout="sliced", len_k=33),
    AdditiveCase("shared", layout="shared", batch=3),
    AdditiveCase("saturated", magnitude=20.0),
    AdditiveCase("overflowing", magnitude=300.0),
    AdditiveCase("outliers", batch=1, len_q=130, len_k=200, outliers=True),
    AdditiveCase("small", magnitude=0.01),
    AdditiveCase("peaked", v_magnitude=4.0),
    AdditiveCase("no_batch", batch=0),
    AdditiveCase("no_queries", len_q=0),
    AdditiveCase("no_keys", len_k=0),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
