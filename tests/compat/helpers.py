"""Tensors for the tests of compat, and how exactly results are compared."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def draw(
    len_q: int = 5,
    len_k: int = 7,
    heads: int = 4,
    heads_k: int = 2,
    dim: int = 8,
    dim_v: int | None = None,
    dtype: torch.dtype = torch.float64,
    batch: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [batch, seqlen, heads, dim] with gradients, always the same numbers."""
    q = normal(batch, len_q, heads, dim, seed=1, dtype=dtype)
    k = normal(batch, len_k, heads_k, dim, seed=2, dtype=dtype)
    v = normal(batch, len_k, heads_k, dim if dim_v is None else dim_v, seed=3, dtype=dtype)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of fp64."""
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-9, atol=1e-10)
