"""Tile shapes and compiler options of the backward and of forward mode, as in configs.py.

Every list ends with a config that fits into any chip.
"""

from __future__ import annotations

import functools

import torch

from .configs import SMALL_WINDOW, by_pointers, has_wgmma, shared_bytes
from .launch import INTERPRETER, Config
from .tiles import padded_dim

KINDS = ("backward_key", "backward_query", "backward_bias", "jvp")


@functools.lru_cache(maxsize=1024)
def backward_config(
    kind: str, head_dim: int, value_dim: int, dtype: torch.dtype, arch: str, window: int
) -> Config:
    """The fixed config of a kernel, best guess that fits into the chip.

    Args:
        kind: one of KINDS.
        arch: see `launch.arch_of`.
        window: keys that a query sees at most.
    """
    return backward_candidates(kind, head_dim, value_dim, dtype, arch, window)[0]


def backward_candidates(
    kind: str, head_dim: int, value_dim: int, dtype: torch.dtype, arch: str, window: int
) -> list[Config]:
    """Configs worth measuring, best guess first; all fit into the chip."""
    if kind not in KINDS:
        raise ValueError(f"kind: must be one of {', '.join(KINDS)}, got {kind!r}")
    dim = max(padded_dim(head_dim), padded_dim(value_dim))
    if arch == INTERPRETER:
        # Large enough to be quick, small enough that short lengths take several tiles.
        configs = [Config(64, 64, 4, 1)]
    elif dtype == torch.float32:
        configs = _wide_list(dim)
    elif kind == "backward_key":
        configs = _key_list(dim, has_wgmma(arch))
    elif kind == "jvp":
        configs = _jvp_list(dim, has_wgmma(arch))
    else:
        configs = _query_list(dim, has_wgmma(arch))
    if window <= SMALL_WINDOW:
        # A tile sees BLOCK + window rows of the other side: large ones mostly masked.
        small = [config for config in configs if max(config.block_q, config.block_kv) <= 64]
        configs = small + [config for config in configs if config not in small]
    limit = shared_bytes(arch)
    fitting = [c for c in configs if _shared(kind, c, dim, dtype) <= limit] or configs[-1:]
    return [by_pointers(config, arch) for config in fitting]


def use_fused_form(head_dim: int, value_dim: int, dtype: torch.dtype, arch: str) -> bool:
    """Whether dQ is best summed by atomic additions, where results may vary from run to run.

    Five products instead of seven. On Hopper and later the products are the bottleneck and the L2
    cache takes the additions meanwhile; before, and for fp32, the additions are.
    """
    wide = max(padded_dim(head_dim), padded_dim(value_dim)) > 128
    return arch in ("sm_90", "sm_100", "sm_103") and dtype != torch.float32 and not wide


def _key_list(dim: int, hopper: bool) -> list[Config]:
    """K, V, dK and dV stay; Q and dO pass. dK and dV are in registers all the while.

    S and dP of more queries would not fit in beside them. mma.sync keeps fragments of K and V in
    registers, too, which wgmma reads from shared memory.
    """
    if dim <= 64:
        large = [Config(64, 128, 8, 2)] if hopper else []
        return [*large, Config(32, 64, 4, 2), Config(32, 64, 4, 1)]
    if dim <= 128:
        large = [Config(32, 128, 8, 2)] if hopper else []
        return [*large, Config(32, 64, 4, 2), Config(32, 64, 4, 1)]
    if dim <= 256:
        large = [] if hopper else [Config(32, 64, 8, 1)]
        return [*large, Config(32, 32, 8, 1), Config(16, 32, 4, 1)]
    return [Config(32, 32, 8, 1), Config(16, 32, 8, 1)]


def _query_list(dim: int, hopper: bool) -> list[Config]:
    """Q, dO and dQ stay; K and V pass."""
    if dim <= 64:
        return [Config(128, 64, 8, 2), Config(64, 64, 4, 2), Config(64, 32, 4, 2)]
    if dim <= 128:
        large = [Config(128, 64, 8, 2)] if hopper else []
        return [*large, Config(64, 32, 4, 2), Config(64, 32, 4, 1)]
    if dim <= 256:
        large = [Config(128, 32, 8, 1)] if hopper else [Config(64, 32, 8, 1)]
        return [*large, Config(32, 32, 4, 1)]
    return [Config(32, 32, 8, 1), Config(16, 32, 8, 1)]


def _jvp_list(dim: int, hopper: bool) -> list[Config]:
    """Q and its tangent, out and its tangent stay; K, V and their tangents pass."""
    if dim <= 64:
        large = [Config(64, 64, 4, 2)] if hopper else []
        return [*large, Config(64, 32, 4, 2), Config(32, 32, 4, 2)]
    if dim <= 128:
        large = [Config(128, 32, 8, 2)] if hopper else []
        return [*large, Config(64, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 32, 4, 1)]
    if dim <= 256:
        return [Config(32, 32, 8, 1), Config(16, 32, 4, 1)]
    return [Config(16, 32, 8, 1)]


def _wide_list(dim: int) -> list[Config]:
    """fp32: products on CUDA cores (ieee) hold whole operands in registers, small tiles only."""
    if dim <= 64:
        return [Config(32, 32, 4, 1)]
    if dim <= 256:
        return [Config(32, 32, 8, 1), Config(16, 32, 8, 1)]
    return [Config(16, 32, 8, 1)]


def _shared(kind: str, config: Config, dim: int, dtype: torch.dtype) -> int:
    """The two operands that stay, the stages of the two that pass, and P and dS, in bytes."""
    stay, passing = config.block_q, config.block_kv
    if kind == "backward_key":
        stay, passing = passing, stay
    # In forward mode the tangents of K and V pass, too; those of Q stay.
    rows = 2 * stay + (4 if kind == "jvp" else 2) * passing * config.num_stages
    return (rows * dim + 2 * stay * passing) * dtype.itemsize
