"""Builds the CPU library with nothing but the AMX kernels, on a model of the AMX instructions.

    python -m native.amx_model PYTEST_ARGUMENTS     (from tests/; runs pytest on that library)

The model (csrc/cpu/amx.h) stands behind the same functions as the instructions, so that packing,
padding and the walk over tiles are run on machines without AMX.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ninja import ninja_syntax
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "amx_model"
LIBRARY = FOLDER / "libfused_attention_cpu.so"
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-math-errno"),
    *("-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020b000000000000"),
    "-DFUSED_ATTENTION_AMX_MODEL",
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
SOURCES = {
    "binding.cpp": "",
    "cpu/launch.cpp": "",
    "cpu/isa_amx_bf16.cpp": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma -mf16c",
}


def build() -> Path:
    """The folder of the library; compiled anew only when a source has changed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{CSRC / 'include'}", *(f"-isystem {p}" for p in cpp_extension.include_paths())]
    libraries = [*(f"-L{p}" for p in cpp_extension.library_paths()), "-ltorch_cpu", "-lc10"]
    flags = " ".join([*FLAGS, *includes])
    with (FOLDER / "build.ninja").open("w") as file:
        ninja = ninja_syntax.Writer(file)
        compile_one = f"c++ -MMD -MF $out.d {flags} $extra -c $in -o $out"
        ninja.rule("compile", compile_one, depfile="$out.d", deps="gcc")
        ninja.rule("link", f"c++ -shared $in -o $out -Wl,--no-as-needed {' '.join(libraries)}")
        objects = []
        for name, extra in SOURCES.items():
            objects.append(str(FOLDER / Path(name).with_suffix(".o").name))
            ninja.build(objects[-1], "compile", str(CSRC / name), variables={"extra": extra})
        ninja.build(str(LIBRARY), "link", objects)
    subprocess.run([sys.executable, "-m", "ninja", "-C", str(FOLDER)], check=True)
    return FOLDER


if __name__ == "__main__":
    from fused_attention import _ext

    _ext.LIBRARY_FOLDER = build()
    sys.exit(pytest.main(sys.argv[1:]))
