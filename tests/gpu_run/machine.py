"""What this machine has: a GPU, its driver, nvcc, compute-sanitizer; found without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

GPU_FIELDS = (
    "name",
    "driver_version",
    "compute_cap",
    "memory.total",
    "clocks.max.sm",
    "power.limit",
    "mig.mode.current",
)


def output_of(command: list[str]) -> str:
    """What a command prints; empty where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def toolkit_program(name: str) -> str | None:
    """A program of the CUDA toolkit, by PATH, CUDA_HOME or its usual places."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [Path(home) / part for home in homes if home for part in ("bin", "compute-sanitizer")]
    return shutil.which(name) or next(
        (str(folder / name) for folder in folders if os.access(folder / name, os.X_OK)), None
    )


def gpus(ask: Callable[[list[str]], str] = output_of) -> list[dict[str, str]]:
    """The GPUs as nvidia-smi describes them."""
    table = ask(["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"])
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line]
    return [dict(zip(GPU_FIELDS, row, strict=False)) for row in rows if len(row) > 1]


def machine_facts() -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "gpus": gpus(),
        "nvcc": toolkit_program("nvcc"),
        "compute_sanitizer": toolkit_program("compute-sanitizer"),
        "cores": os.cpu_count() or 1,
    }
