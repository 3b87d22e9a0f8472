"""One local attention for a test: its description, its tensors, its exact result, its budget.

    inputs = LocalCase("grouped", heads_q=4, dtype=torch.bfloat16).make(seed=0)
    inputs.assert_results(*inputs.run("cpu"))

The exact result is the plain formula under autograd in fp64. The baseline is the same in the
kernel's dtype; its gradients are those of the formulas, which as the kernels do take delta from the
rounded out. See budget.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from budget import GRADIENT_FACTOR, assert_within_budget
from torch import Tensor

from fused_attention import local_attention
from fused_attention.local.call import LocalCall
from fused_attention.local.reference import local_backward_reference

# Elements below which a baseline may be right by luck: the gradients of position and sigma weight
# errors by the square of a distance, so that a few rows make the largest one.
FEW = 2000

NAMES = ("query", "key", "value", "position", "sigma")


@dataclass(frozen=True)
class LocalCase:
    """One problem, without its numbers.

    Attributes:
        sigma: "default", "inf", "number", or a tensor for "all", each "head" or each "query".
        positions: "spread" over the keys in any order and a little beyond, "rising" with the query,
            "same" for all, "beyond" every key, or one for all heads, "shared".
        key_lengths: keys that exist per batch row; what lies beyond holds NaN.
        layout: "contiguous" [B, H, L, D]; "swapped", a view of [B, L, H, D]; "sliced", rows of a
            wider tensor.
        magnitude: factor on the queries, to make the softmax peaked.
    """

    name: str
    batch: int = 2
    heads_q: int = 2
    heads_kv: int = 2
    len_q: int = 35
    len_k: int = 50
    head_dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    width: float = 6.0
    sigma: str = "default"
    mode: str = "luong"
    positions: str = "spread"
    key_lengths: tuple[int, ...] | None = None
    layout: str = "contiguous"
    scale: float | None = None
    magnitude: float = 1.0

    def __str__(self) -> str:
        return self.name

    def with_dtype(self, dtype: torch.dtype) -> LocalCase:
        return replace(self, dtype=dtype)

    def make(self, seed: int = 0, device: torch.device | str = "cpu") -> LocalInputs:
        """The problem with numbers: the same ones for a seed, on every device."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        query = normal(self.batch, self.heads_q, self.len_q, self.head_dim) * self.magnitude
        key = normal(self.batch, self.heads_kv, self.len_k, self.head_dim)
        value = normal(self.batch, self.heads_kv, self.len_k, self.value_dim)
        if self.key_lengths is not None:
            exists = torch.arange(self.len_k) < torch.tensor(self.key_lengths)[:, None]
            hidden = ~exists[:, None, :, None]
            key, value = (x.masked_fill(hidden, torch.nan) for x in (key, value))
        operands = [self._laid_out(x.to(device, self.dtype)) for x in (query, key, value)]
        rows = (self.batch, 1 if self.positions == "shared" else self.heads_q, self.len_q)
        # Positions of fp32, so that they have the same floor in every dtype.
        position = uniform(*rows) * (self.len_k + 2 * min(self.width, 20.0)) - min(self.width, 20.0)
        if self.positions == "rising":
            position = position.sort(-1).values
        elif self.positions == "same":
            position = torch.full(rows, self.len_k / 3)
        elif self.positions == "beyond":
            position = position + 4 * self.len_k + 100
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        shapes: dict[str, tuple[int, ...]] = {"all": (), "head": (self.heads_q,)}
        shapes["query"] = (self.batch, self.heads_q, self.len_q)
        sigma: Any = {"default": None, "inf": math.inf, "number": 2.5}.get(self.sigma)
        if self.sigma in shapes:
            sigma = (uniform(*shapes[self.sigma]) * 4 + 1.5).to(device, wide)
        return LocalInputs(self, *operands, position.to(device, wide), sigma)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if self.layout == "swapped":
            return tensor.transpose(1, 2).contiguous().transpose(1, 2)
        if self.layout == "sliced":
            wider = torch.cat([tensor, torch.full_like(tensor, torch.nan)], dim=-1)
            return wider[..., : tensor.shape[-1]]
        return tensor


@dataclass(frozen=True)
class LocalInputs:
    """Tensors of one problem, named and shaped as the arguments of `local_attention`."""

    case: LocalCase
    query: Tensor
    key: Tensor
    value: Tensor
    position: Tensor
    sigma: Any

    @property
    def options(self) -> dict[str, Any]:
        case, lengths = self.case, self.case.key_lengths
        options = {"width": case.width, "mode": case.mode, "scale": case.scale}
        if lengths is not None:
            options["key_lengths"] = torch.tensor(lengths, device=self.query.device)
        return options

    @property
    def leaves(self) -> list[Tensor]:
        """What has gradients, sigma if it is a tensor."""
        tensors = (self.query, self.key, self.value, self.position, self.sigma)
        return [x for x in tensors if isinstance(x, Tensor)]

    @cached_property
    def upstream(self) -> tuple[Tensor, Tensor]:
        """Gradients of out, in the dtype, and of lse, 0 where no key is seen."""
        generator = torch.Generator().manual_seed(1)
        out, lse = self.plain(torch.float64, gradients=False)
        grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (out, lse)]
        grads[1] = grads[1].masked_fill(lse.cpu().isinf(), 0.0)
        device = self.query.device
        return grads[0].to(device, self.case.dtype), grads[1].to(device, self.position.dtype)

    def run(self, backend: str) -> tuple[Tensor, ...]:
        """out, lse and the gradients of the leaves."""
        leaves = [x.detach().requires_grad_() for x in self.leaves]
        options = {**self.options, "sigma": leaves[4] if len(leaves) == 5 else self.sigma}
        results = local_attention(*leaves[:4], return_lse=True, backend=backend, **options)
        return (*results, *torch.autograd.grad(results, leaves, self.upstream))

    def plain(self, dtype: torch.dtype, gradients: bool = True) -> tuple[Tensor, ...]:
        """The same as a few operations of torch in a dtype, differentiated by autograd."""
        case, wide = self.case, torch.promote_types(dtype, torch.float32)
        dtypes = (dtype, dtype, dtype, wide, wide)
        leaves = [x.detach().to(d) for x, d in zip(self.leaves, dtypes, strict=False)]
        if case.key_lengths is not None:
            exists = torch.arange(case.len_k) < torch.tensor(case.key_lengths)[:, None]
            hidden = ~exists[:, None, :, None].to(leaves[1].device)
            leaves[1:3] = [x.masked_fill(hidden, 0.0) for x in leaves[1:3]]
        query, key, value, position, *rest = (x.requires_grad_(gradients) for x in leaves)
        sigma = rest[0] if rest else self.sigma
        sigma = case.width / 2 if sigma is None else sigma
        if isinstance(sigma, Tensor) and sigma.dim():
            sigma = sigma[:, None, None] if sigma.dim() == 1 else sigma[..., None]
        group = case.heads_q // case.heads_kv
        shared_key, shared_value = (x.repeat_interleave(group, 1) for x in (key, value))
        scale = case.head_dim**-0.5 if case.scale is None else case.scale
        scores = query @ shared_key.mT * scale
        distance = torch.arange(case.len_k, device=query.device) - position[..., None]
        gaussian = -((distance / sigma) ** 2) / 2
        visible = self._visible()
        dead = ~visible.any(-1)
        if case.mode == "log_bias":
            scores = scores + gaussian.to(dtype)
        scores = scores.masked_fill(~visible & ~dead[..., None], -torch.inf)
        lse = scores.to(wide).logsumexp(-1).masked_fill(dead, -torch.inf)
        weights = scores.softmax(-1)
        if case.mode == "luong":
            weights = weights * gaussian.exp().to(dtype)
        out = (weights @ shared_value).masked_fill(dead[..., None], 0.0)
        if not gradients:
            return out, lse
        results, upstream = (out, lse), [self.upstream[0].to(dtype), self.upstream[1].to(wide)]
        found = torch.autograd.grad(results, leaves, upstream, allow_unused=True)
        pairs = zip(found, leaves, strict=True)
        found = tuple(torch.zeros_like(x) if grad is None else grad for grad, x in pairs)
        return (*(x.detach() for x in results), *found)

    def baseline(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """`plain` without autograd: the gradients' formulas on results that are rounded."""
        case, rows = self.case, self.query.shape[:-1]
        results = self.plain(dtype, gradients=False)
        leaves = self.leaves
        position = leaves[3].expand(rows)
        sigma = case.width / 2 if self.sigma is None else self.sigma
        if isinstance(sigma, Tensor):
            sigma = (sigma[:, None] if sigma.dim() == 1 else sigma).expand(rows)
        call = LocalCall(
            *leaves[:3],
            position,
            sigma if isinstance(sigma, Tensor) else None,
            self.options.get("key_lengths"),
            case.width,
            0.0 if isinstance(sigma, Tensor) else sigma,
            case.head_dim**-0.5 if case.scale is None else case.scale,
            case.mode == "log_bias",
        )
        found = local_backward_reference(call, self.upstream, results, dtype)
        grads = [*found[:3], found.position.sum_to_size(leaves[3].shape)]
        if len(leaves) == 5 and found.sigma is not None:
            per_head = found.sigma.sum((0, 2)) if leaves[4].dim() == 1 else found.sigma
            grads.append(per_head if leaves[4].dim() else per_head.sum())
        return (*results, *grads)

    def assert_results(self, *results: Tensor, name: str = "") -> None:
        """Out, lse and the gradients are within their budgets and of the right dtypes."""
        low = torch.float32 if self.case.dtype == torch.float64 else self.case.dtype
        exact, baseline = self.plain(torch.float64), self.baseline(low)
        likes = (self.query, self.position, *self.leaves)
        labels = ("out", "lse", *(f"d{x}" for x in NAMES))
        draws = self._more_draws(low, any(x.numel() < FEW for x in exact))
        for n, result in enumerate(results):
            assert result.dtype == likes[n].dtype, labels[n]
            one = (result, exact[n], baseline[n])
            assert_within_budget(
                *one,
                factor=2.0 if n < 2 else GRADIENT_FACTOR,
                name=f"{name}{labels[n]}",
                more_draws=[(draw[0][n], draw[1][n]) for draw in draws],
            )

    def _more_draws(self, low: torch.dtype, tiny: bool) -> list[Any]:
        """(exact, baseline) of more seeds, if any result has too few elements for an honest one."""
        others = [self.case.make(seed, self.query.device) for seed in range(91, 95) if tiny]
        return [(one.plain(torch.float64), one.baseline(low)) for one in others]

    def _visible(self) -> Tensor:
        """[B, Hq, Lq, Lk], True where the query sees the key."""
        case, device = self.case, self.query.device
        key = torch.arange(case.len_k, device=device)
        visible = (key - self.position.floor()[..., None]).abs() <= case.width
        if case.key_lengths is not None:
            visible = visible & (key < self.options["key_lengths"][:, None, None, None])
        return visible.expand(case.batch, case.heads_q, case.len_q, case.len_k)
