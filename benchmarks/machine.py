"""What a result was measured on: CPU, instruction set, versions, threads, date and revision."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import fused_attention


def machine_info() -> dict[str, Any]:
    """Plain values for JSON; touches neither CUDA nor the network."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": memory_gib(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fused_attention": fused_attention.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": git_revision(),
    }


def gpu_info() -> dict[str, Any]:
    """The GPU in use, for reports that are measured on it; empty where there is none."""
    if not torch.cuda.is_available():
        return {}
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": found.name,
        "gpu_capability": f"{found.major}.{found.minor}",
        "gpu_sms": found.multi_processor_count,
        "gpu_memory_gib": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **_ask_nvidia_smi("driver_version", "clocks.max.sm", "power.limit"),
    }


def gpu_state() -> dict[str, Any]:
    """Clock, power and temperature now, right after a measurement."""
    return _ask_nvidia_smi("clocks.sm", "power.draw", "temperature.gpu")


def _ask_nvidia_smi(*fields: str) -> dict[str, Any]:
    """Fields of the first GPU; empty where nvidia-smi does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    cells = [cell.strip() for cell in done.stdout.split("\n")[0].split(",")]
    return dict(zip(fields, cells, strict=False))


def cpu_model() -> str:
    """The processor's own name, as far as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    fields = {}
    for line in text.split("\n\n")[0].splitlines():
        field, _, value = line.partition(":")
        fields[field.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:
        # Virtual machines shorten the name ("AMD EPYC"); family and model still tell the chip.
        name += f" (family {fields['cpu family']} model {fields['model']})"
    return name


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def git_revision() -> str | None:
    """Short revision of the checkout that this package runs from; None outside one."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    # An installed copy may lie inside somebody else's repository.
    return done.stdout.strip() if (here.parent / "csrc").is_dir() else None
