"""CUDA C++ -> PTX by nvcc, kept in build/ptx until a source changes."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find_nvcc() -> str | None:
    """Path of nvcc: of $CUDA_HOME, on PATH, or in /usr/local/cuda."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").is_file():
            return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


@functools.cache
def compile_ptx(source: Path, arch: str, includes: Sequence[Path] = ()) -> str:
    """The PTX of a .cu file for an arch such as "80" or "90a", with line numbers."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("nvcc was not found: set CUDA_HOME, or put it on PATH")
    folder = ROOT / "build" / "ptx"
    folder.mkdir(parents=True, exist_ok=True)
    command = [nvcc, "-std=c++17", "-ptx", "-lineinfo", *(f"-I{path}" for path in includes)]
    command.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    headers = [path for folder in (source.parent, *includes) for path in folder.rglob("*.*h")]
    stamp = hashlib.sha256(" ".join(command).encode())
    for path in sorted({source, *headers}):
        stamp.update(path.read_bytes())
    target = folder / f"{source.stem}_{arch}_{stamp.hexdigest()[:16]}.ptx"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, str(source), "-o", str(partial)], check=True)
        partial.replace(target)
    return target.read_text()
