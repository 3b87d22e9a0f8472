"""The kernels of ptxsim/kernels on random inputs, compared with float64."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from ptxsim import GlobalMemory, Report, launch
from ptxsim.halves import bf16_to_f32, f32_to_bf16
from ptxsim.nvcc import compile_ptx, find_nvcc
from ptxsim.tensor_map import tensor_map

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
TILE, DIM, THREADS = 64, 64, 256
SHARED_BYTES = 5 * TILE * 128 + 64

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="needs nvcc")


def run_sum(ptx: str, *, blocks: int = 5, count: int = 96, seed: int | None = None) -> float:
    """The kernel that adds blocks by bulk reductions; 0 if all sums are right, else infinity."""
    numbers = np.arange(blocks * count, dtype=np.float32).reshape(blocks, count)
    sums = np.full(count, 1000, np.float32)
    launch(ptx, "sum_sm90", (blocks,), (32,), [numbers, sums, count], seed=seed, resident=3)
    return 0.0 if (sums == 1000 + 2 * numbers.sum(0)).all() else float("inf")


def sm90_ptx() -> str:
    return compile_ptx(KERNELS / "attention_sm90.cu", "90a")


def enum_of_faults() -> list[str]:
    """The names in the kernel's enum Fault, in its order."""
    text = (KERNELS / "attention_sm90.cu").read_text()
    body = text.split("enum Fault {")[1].split("}")[0]
    return [name.strip() for name in body.split(",") if name.strip()]


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, rounded: bool
) -> np.ndarray:
    """In float64; `rounded`: with weights and results rounded to bfloat16 as the kernels do."""
    q, k, v = (bf16_to_f32(x).astype(np.float64) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    if not rounded:
        return weights @ v / total
    weights = bf16_to_f32(f32_to_bf16(weights)).astype(np.float64)
    return bf16_to_f32(f32_to_bf16(weights @ v / total)).astype(np.float64)


def error_in_budgets(
    got: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float
) -> float:
    """Error of bfloat16 results; 1 is twice that of the same roundings done in float64."""
    exact = attention(q, k, v, scale, False)
    budget = 2 * np.abs(attention(q, k, v, scale, True) - exact).max() + 1e-6
    error = np.abs(bf16_to_f32(got).astype(np.float64) - exact).max()
    return float("inf") if np.isnan(error) else float(error / budget)


def run_sm90(
    ptx: str,
    *,
    queries: int = 64,
    keys: int = 200,
    heads: int = 1,
    fault: str = "NONE",
    seed: int | None = None,
    swizzle: int = 128,
) -> tuple[float, Report]:
    """Error in budgets, and what the launch reports; `swizzle` is that of the keys' map."""
    random = np.random.default_rng(7)
    memory = GlobalMemory()
    shapes = {"q": queries, "k": keys, "v": keys}
    data = {n: f32_to_bf16(random.normal(0, 1, (heads, x, DIM))) for n, x in shapes.items()}
    place = {name: memory.put(array) for name, array in data.items()}
    place["o"] = memory.put(np.full((heads, queries, DIM), 0xFFFF, np.uint16))
    maps = []
    for name, rows in (("q", queries), ("k", keys), ("v", keys), ("o", queries)):
        used = swizzle if name == "k" else 128
        box = (min(64, used // 2) if used else 64, TILE, 1)
        extent, steps = (DIM, rows, heads), (2, DIM * 2, rows * DIM * 2)
        maps.append(tensor_map(place[name], extent, steps, box, 2, used))
    number = enum_of_faults().index(fault)
    args = [*maps, struct.pack("<ifi", keys, DIM**-0.5, number)]
    grid = (-(-queries // TILE), heads)
    report = launch(
        ptx, "attention_sm90", grid, (THREADS,), args, SHARED_BYTES, seed=seed, memory=memory
    )
    got = memory.get(place["o"])
    return error_in_budgets(got, data["q"], data["k"], data["v"], DIM**-0.5), report
