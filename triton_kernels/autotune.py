"""Measuring configs, where FUSED_ATTENTION_TRITON_AUTOTUNE=1 asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence

import triton

from .launch import Config, interpreted

VARIABLE = "FUSED_ATTENTION_TRITON_AUTOTUNE"
_found: dict[Hashable, Config] = {}


def wanted() -> bool:
    """Whether configs are measured instead of taken from the table."""
    return os.environ.get(VARIABLE) == "1" and not interpreted()


def fastest(key: Hashable, configs: Sequence[Config], run: Callable[[Config], None]) -> Config:
    """The config with the least median time; each key is measured once per process.

    A config that Triton cannot compile or the chip cannot hold is passed over.

    Raises:
        RuntimeError: not one of them runs.
    """
    if key not in _found:
        times: dict[Config, float] = {}
        problems = []
        for config in configs:
            try:
                times[config] = _measure(config, run)
            except Exception as error:  # of any kind: compilers fail in many ways
                problems.append(f"{config}: {error}")
        if not times:
            raise RuntimeError("no config of the kernel runs: " + "; ".join(problems))
        _found[key] = min(times, key=times.__getitem__)
    return _found[key]


def _measure(config: Config, run: Callable[[Config], None]) -> float:
    median: float = triton.testing.do_bench(
        lambda: run(config), warmup=10, rep=50, return_mode="median"
    )
    return median
