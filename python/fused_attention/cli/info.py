"""fused-attention info: what this machine has and which backends can run on it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

from fused_attention import __version__, _ext, backends
from fused_attention.arguments import Subparsers, add_command
from fused_attention.benchmarks.machine import cpu_model, memory_gib
from fused_attention.cli.matrix import print_matrix, support
from fused_attention.cli.output import Output


def add_parser(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "info",
        "show versions, CPU, GPU and the backends that can run here",
        "fused-attention info --matrix",
        run,
    )
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="print which backend supports which feature in which dtype, instead",
    )


def run(arguments: argparse.Namespace) -> int:
    output = Output(arguments.json)
    if arguments.matrix:
        matrix = support()
        print_matrix(output, matrix)
        output.json(matrix.as_dicts())
        return 0
    info = gather()
    show(output, info)
    output.json(info)
    return 0


def gather() -> dict[str, Any]:
    """Everything that `info` tells, as plain values; no CUDA context is made."""
    return {
        "fused_attention": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_info(),
        "triton": triton_info(),
        "cuda": cuda_info(),
        "backends": backends().as_dicts(),
    }


def cpu_info() -> dict[str, Any]:
    unavailable = _ext.cpu_unavailable()
    return {
        "model": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "isa": None if unavailable else _ext.cpu_isa(),
        "available_isas": list(_ext.available_cpu_isas()),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
    }


def triton_info() -> dict[str, Any]:
    """Triton's version from its metadata: importing it would cost a second."""
    try:
        return {"version": importlib.metadata.version("triton")}
    except importlib.metadata.PackageNotFoundError:
        return {"version": None}


def cuda_info() -> dict[str, Any]:
    """CUDA as torch sees it through the driver's management library, which makes no context."""
    if torch.version.cuda is None:
        return {"torch_cuda": None, "devices": [], "reason": "this torch is built without CUDA"}
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if not torch.cuda.is_available():
        reason = "no usable GPU or driver was found"
        return {"torch_cuda": torch.version.cuda, "devices": [], "reason": reason}
    return {"torch_cuda": torch.version.cuda, "devices": _gpu_names(), "reason": None}


def _gpu_names() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        command = [tool, "--query-gpu=name", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            return done.stdout.split("\n")[:-1]
        except (OSError, subprocess.SubprocessError):
            pass
    return ["GPU"] * torch.cuda.device_count()


def show(output: Output, info: dict[str, Any]) -> None:
    cpu, cuda = info["cpu"], info["cuda"]
    memory = "" if cpu["memory_gib"] is None else f", {cpu['memory_gib']} GiB"
    isas = ", ".join(cpu["available_isas"])
    in_use = f"{cpu['isa']} in use (this CPU runs {isas})" if cpu["isa"] else "none in use"
    rows = [
        ["fused_attention", info["fused_attention"]],
        ["torch", info["torch"]],
        ["Python", f"{info['python']} on {info['system']}"],
        ["CPU", f"{cpu['model']}, {cpu['cores']} cores{memory}"],
        ["instruction set", f"{in_use}; torch uses {cpu['torch_isa']}"],
        ["threads", str(cpu["threads"])],
        ["Triton", info["triton"]["version"] or "not installed"],
        ["CUDA", cuda["reason"] or f"{cuda['torch_cuda']}: {', '.join(cuda['devices'])}"],
    ]
    for backend in info["backends"]:
        state = "available" if backend["available"] else f"not available: {backend['reason']}"
        rows.append([f"backend {backend['name']}", state])
    output.heading("This machine")
    output.table(["", ""], rows, left=2)
