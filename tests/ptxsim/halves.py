"""bfloat16, half pairs and TF32 as numpy has no types for them."""

from __future__ import annotations

from typing import Any

import numpy as np

_LOW = np.uint32(0xFFFF)
_HIGH = np.uint32(0xFFFF0000)
_SIXTEEN = np.uint32(16)


def bf16_to_f32(bits: Any) -> np.ndarray:
    """uint16 (or uint32 with a zero upper half) bits of bfloat16 as float32."""
    return (np.asarray(bits).astype(np.uint32) << _SIXTEEN).view(np.float32)


def f32_to_bf16(value: Any, mode: str = "rn") -> np.ndarray:
    """float32 -> bfloat16 bits (uint16); rn: to nearest even, rz: towards zero."""
    value = np.atleast_1d(np.asarray(value, np.float32))
    bits = np.ascontiguousarray(value).view(np.uint32)
    if mode == "rz":
        rounded = bits >> _SIXTEEN
    else:
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> _SIXTEEN) & np.uint32(1))) >> _SIXTEEN
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded).astype(np.uint16)


def f32_to_f16(value: Any, mode: str = "rn") -> np.ndarray:
    """float32 -> float16 bits (uint16)."""
    value = np.atleast_1d(np.asarray(value, np.float32))
    half = value.astype(np.float16)
    if mode == "rz":
        over = np.abs(half.astype(np.float32)) > np.abs(value)
        half = np.where(over, np.nextafter(half, np.float16(0)), half)
    bits = half.view(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), bits)


def to_float(bits: np.ndarray, kind: str) -> np.ndarray:
    """uint16 bits of f16 or bf16 as float32."""
    if kind == "bf16":
        return bf16_to_f32(bits)
    return (
        np.ascontiguousarray(bits).astype(np.uint16, copy=False).view(np.float16).astype(np.float32)
    )


def to_bits(value: np.ndarray, kind: str, mode: str = "rn") -> np.ndarray:
    return f32_to_bf16(value, mode) if kind == "bf16" else f32_to_f16(value, mode)


def unpack(pair: Any, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of f16x2 or bf16x2 (uint32) as float32: the low one, the high one."""
    pair = np.atleast_1d(np.asarray(pair, np.uint32))
    if kind == "bf16":
        return (pair << _SIXTEEN).view(np.float32), (pair & _HIGH).view(np.float32)
    return to_float(pair & _LOW, kind), to_float(pair >> _SIXTEEN, kind)


def pack(low: np.ndarray, high: np.ndarray, kind: str, mode: str = "rn") -> np.ndarray:
    """Two float32 arrays as f16x2 or bf16x2 (uint32)."""
    return to_bits(low, kind, mode).astype(np.uint32) | (
        to_bits(high, kind, mode).astype(np.uint32) << _SIXTEEN
    )


def to_tf32(bits: Any) -> np.ndarray:
    """What a tensor core sees of a float32: 10 bits of mantissa."""
    return (np.asarray(bits, np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def round_tf32(value: Any) -> np.ndarray:
    """cvt.rna.tf32.f32: to nearest, ties away from zero."""
    bits = np.atleast_1d(np.asarray(value, np.float32)).view(np.uint32)
    return (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
