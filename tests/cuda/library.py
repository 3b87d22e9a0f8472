"""The whole CUDA library, built once for the tests that look at it; its kernels need a GPU."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "cuda_library"  # objects, what ptxas says of them (*.o.log), library
ARCHS = ["80"]


@functools.cache
def cuda_library() -> Path:
    """Path of libfused_attention_cuda.so for sm_80; compiles what has changed, on all cores."""
    spec = importlib.util.spec_from_file_location("fused_attention_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    home = setup.cuda_home()
    if home is None:
        pytest.skip("needs nvcc")
    FOLDER.mkdir(parents=True, exist_ok=True)
    library = FOLDER / "libfused_attention_cuda.so"
    sources = setup.cuda_sources(ARCHS)
    setup.write_ninja_file(FOLDER / "build.ninja", library, sources, home)
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    subprocess.run([sys.executable, "-m", "ninja", "-C", str(FOLDER), *jobs], check=True)
    return library
