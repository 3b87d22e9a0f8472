"""The portable fp16 and bf16 conversions against numpy and torch, exhaustively where possible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from native.build import native_module

ALL_BITS = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def as_torch(bits: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16).copy()).view(dtype)


def random_floats() -> np.ndarray:
    """Random bit patterns, and neighbours of every fp16 value and of every midpoint."""
    random = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    with np.errstate(invalid="ignore", over="ignore"):
        halves = ALL_BITS.view(np.float16).astype(np.float32)
        middles = halves[:-1] / 2 + halves[1:] / 2
        values = np.concatenate([random.view(np.float32), halves, middles])
        return np.concatenate([values, np.nextafter(values, np.inf), np.nextafter(values, -np.inf)])


@pytest.mark.parametrize("name,dtype", [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_widening_is_exact(name, dtype):
    wide = torch.from_numpy(getattr(native_module(), f"{name}_to_float")(ALL_BITS))
    torch.testing.assert_close(
        wide, as_torch(ALL_BITS, dtype).float(), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("name,dtype", [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_narrowing_rounds_to_nearest_even(name, dtype):
    values = random_floats()
    bits = getattr(native_module(), f"float_to_{name}")(values)
    expected = torch.from_numpy(values).to(dtype)
    torch.testing.assert_close(as_torch(bits, dtype), expected, rtol=0, atol=0, equal_nan=True)
