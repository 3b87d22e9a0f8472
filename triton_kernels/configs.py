"""Tile shapes and compiler options: a short list for each kernel, best guess first, with reasons.

`config_for` takes the first of the list that fits into the chip, so that every machine gives the
same results; `candidates` is what FUSED_ATTENTION_TRITON_AUTOTUNE=1 measures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton

from .launch import INTERPRETER, Config
from .tiles import padded_dim

# Shared memory that one program can have, in KiB; 99 is that of the consumer chips. AMD: LDS.
_SHARED_KIB = {"sm_80": 163, "sm_87": 163, "sm_90": 227, "sm_100": 227, "sm_103": 227}
_AMD_SHARED_KIB = {"gfx950": 160}
SMALL_WINDOW = 256  # keys that a query sees; above, large tiles lose little to their edges


class Tiles(NamedTuple):
    """Tile shapes and compiler options of a kernel that goes through its dims in steps."""

    config: Config
    dim_block: int  # dims at a time
    value_block: int  # columns of the values at a time

    def constants(self) -> dict[str, int]:
        return {
            "BLOCK_Q": self.config.block_q,
            "BLOCK_KV": self.config.block_kv,
            "DIM_BLOCK": self.dim_block,
            "VALUE_BLOCK": self.value_block,
        }


def shared_bytes(arch: str) -> int:
    """Shared memory that one program can have."""
    if arch == INTERPRETER:
        return 1 << 30
    if arch.startswith("gfx"):
        return _AMD_SHARED_KIB.get(arch, 64) * 1024
    return _SHARED_KIB.get(arch, 99) * 1024


def has_descriptors(arch: str) -> bool:
    """Whether tiles come by TMA there."""
    return arch.startswith("sm_") and int(arch[3:]) >= 90


def has_wgmma(arch: str) -> bool:
    return arch == "sm_90"


@functools.cache
def pointers_need_a_fence() -> bool:
    """Triton 3.6 leaves out the proxy fence between pipelined copies by pointer and wgmma."""
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)


def at_most_registers(count: int, arch: str) -> tuple[tuple[str, Any], ...]:
    """The option for Config.extra, which NVIDIA's compiler alone has."""
    return (("maxnreg", count),) if arch.startswith("sm_") else ()


def by_pointers(config: Config, arch: str) -> Config:
    """The config for operands that descriptors cannot stand for, safe with every Triton."""
    config = config._replace(use_descriptors=False)
    if has_wgmma(arch) and pointers_need_a_fence():
        config = config._replace(num_stages=1)
    return config


@functools.lru_cache(maxsize=1024)
def config_for(
    kind: str,
    head_dim: int,
    value_dim: int,
    dtype: torch.dtype,
    arch: str,
    window: int,
    rows: int = 1 << 30,
    tile_terms: bool = False,
) -> Config:
    """The fixed config of a kernel.

    Args:
        kind: the kernel; "forward".
        arch: see `launch.arch_of`.
        window: keys that a query sees at most.
        rows: query rows that one key head has at most.
        tile_terms: another tile of the scores' shape is needed, as for a bias or dropout.
    """
    return candidates(kind, head_dim, value_dim, dtype, arch, window, rows, tile_terms)[0]


def candidates(
    kind: str,
    head_dim: int,
    value_dim: int,
    dtype: torch.dtype,
    arch: str,
    window: int,
    rows: int = 1 << 30,
    tile_terms: bool = False,
) -> list[Config]:
    """Configs worth measuring, best guess first; all fit into the chip."""
    if kind != "forward":
        raise ValueError(f"kind: must be 'forward', got {kind!r}")
    dim = max(padded_dim(head_dim), padded_dim(value_dim))
    configs = _forward_list(dim, dtype, arch)
    if tile_terms:
        # Registers hold it beside S and O.
        configs = _first(configs, lambda c: c.block_q * c.block_kv <= 32 * 32 * c.num_warps)
    if window <= SMALL_WINDOW:
        # A tile of BLOCK_Q queries looks at BLOCK_Q + window keys: large ones mostly at masks.
        configs = _first(configs, lambda c: max(c.block_q, c.block_kv) <= 64)
    configs = [_for_rows(config, rows) for config in configs]
    limit = shared_bytes(arch)
    fitting = [c for c in configs if config_shared_bytes(c, dim, dtype, arch) <= limit]
    return list(dict.fromkeys(fitting or [configs[-1]]))


def _first(configs: list[Config], preferred: Callable[[Config], bool]) -> list[Config]:
    return sorted(configs, key=lambda config: not preferred(config))


def _forward_list(dim: int, dtype: torch.dtype, arch: str) -> list[Config]:
    if arch == INTERPRETER:
        # Large enough to be quick, small enough that short lengths take several tiles.
        return [Config(64, 64, 4, 1)]
    if dtype == torch.float32:
        return _wide_list(dim)
    if arch.startswith("gfx"):
        return _amd_list(dim)
    if has_descriptors(arch) and shared_bytes(arch) > 200 * 1024:
        return _hopper_list(dim)
    return _ampere_list(dim)


def _wide_list(dim: int) -> list[Config]:
    """fp32: products on CUDA cores (ieee) hold whole operands in registers, small tiles only."""
    if dim <= 64:
        return [Config(64, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 1)]
    if dim <= 128:
        return [Config(32, 32, 8, 1), Config(32, 32, 16, 2)]
    if dim <= 256:
        return [Config(32, 32, 16, 1), Config(16, 32, 8, 1)]
    return [Config(16, 32, 16, 1)]


def _hopper_list(dim: int) -> list[Config]:
    """wgmma (tcgen05 on sm_100): 64 rows a warpgroup, keys and values by TMA.

    Warp specialisation is for the autotuner alone: not every Triton compiles it.
    """
    if dim <= 64:
        # exp2 takes as long as both products: two warpgroups that take turns, and deep loads.
        return [
            Config(128, 128, 8, 3, True),
            Config(128, 64, 8, 3, True),
            Config(64, 64, 4, 3, True),
            Config(128, 128, 4, 2, True, True),
        ]
    if dim <= 128:
        # 128 x 128: two warpgroups hold O and S in 187 registers; 164 KiB with two stages.
        return [
            Config(128, 128, 8, 2, True),
            Config(128, 64, 8, 3, True),
            Config(64, 64, 4, 3, True),
            Config(128, 128, 4, 2, True, True),
        ]
    if dim <= 256:
        # O alone takes 128 registers: half as many keys at a time.
        return [Config(128, 64, 8, 2, True), Config(64, 64, 4, 2, True), Config(64, 32, 4, 2, True)]
    return [Config(32, 32, 8, 1), Config(64, 32, 8, 2)]


def _ampere_list(dim: int) -> list[Config]:
    """mma.sync and cp.async; the 99 KiB of consumer chips take what follows in each list."""
    if dim <= 64:
        return [Config(128, 64, 4, 3), Config(128, 64, 8, 3), Config(64, 64, 4, 3)]
    if dim <= 128:
        # With 4 warps O and S would need more than 255 registers.
        return [Config(128, 64, 8, 2), Config(64, 64, 4, 2), Config(128, 32, 8, 3)]
    if dim <= 256:
        return [Config(64, 64, 8, 1), Config(64, 32, 8, 2), Config(64, 32, 8, 1)]
    return [Config(32, 32, 8, 1), Config(16, 32, 4, 1)]


def _amd_list(dim: int) -> list[Config]:
    """MFMA; Q stays in registers, and 64 KiB of LDS hold one stage of keys and values."""
    if dim <= 128:
        return [Config(128, 64, 4, 2), Config(128, 32, 4, 2), Config(64, 64, 4, 2)]
    if dim <= 256:
        return [Config(64, 32, 4, 1), Config(64, 32, 8, 1)]
    return [Config(32, 32, 4, 1), Config(32, 32, 8, 1)]


def _for_rows(config: Config, rows: int) -> Config:
    """No larger tile than there are rows; 16 is the least that a product takes."""
    block_q = min(config.block_q, max(16, 1 << (rows - 1).bit_length()))
    if block_q == config.block_q:
        return config
    warps = min(config.num_warps, 4 if block_q >= 64 else 2)
    block_kv = min(config.block_kv, 64)
    return config._replace(block_q=block_q, block_kv=block_kv, num_warps=warps)


def config_shared_bytes(config: Config, dim: int, dtype: torch.dtype, arch: str) -> int:
    """Q, and the stages of K and V that the pipeline holds.

    Without a pipeline K and V take turns; on AMD Q stays in registers.
    """
    tiles = 1 if config.num_stages == 1 else 2 * config.num_stages
    rows = config.block_kv * tiles + (0 if arch.startswith("gfx") else config.block_q)
    return rows * dim * dtype.itemsize
