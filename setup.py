"""Builds fused_attention/lib/libfused_attention_cpu.so with ninja, then packages it.

The library is bound to torch through LibTorch's stable ABI and has no Python linkage, so one build
serves every Python >= 3.10 and every torch >= 2.11 of the platform. Each instruction set is one
source file with its own compiler flags; which one runs is decided at run time.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
PACKAGES = {  # what stands outside python/ is installed inside the package
    **{name: "python/" + name.replace(".", "/") for name in find_packages("python")},
    "fused_attention.benchmarks": "benchmarks",
    "fused_attention.triton_kernels": "triton_kernels",
}
CPU_LIBRARY = "fused_attention.lib.libfused_attention_cpu"
AMX_FLAGS = ("-mamx-tile", "-mamx-bf16")
TORCH_TARGET = "0x020b000000000000"  # the oldest torch whose ABI the library asks for: 2.11


def compiler_knows_amx() -> bool:
    """Compilers before gcc 11 and assemblers before binutils 2.36 build the library without."""
    command = [*shlex.split(os.environ.get("CXX", "c++")), *AMX_FLAGS, "-x", "c++", "-c", "-"]
    code = 'void zero() { asm volatile("tilezero %tmm0"); }'
    result = subprocess.run([*command, "-o", os.devnull], input=code.encode(), capture_output=True)
    return result.returncode == 0


def cpu_sources() -> dict[Path, list[str]]:
    """Source file -> the flags that it alone is compiled with."""
    sources: dict[Path, list[str]] = {
        CSRC / "binding.cpp": [],
        CSRC / "cpu/decode_launch.cpp": [],
        CSRC / "cpu/decode_portable.cpp": [],
        CSRC / "cpu/launch.cpp": [],
        CSRC / "cpu/tile_launch.cpp": [],
        CSRC / "cpu/isa_portable.cpp": [],
    }
    if platform.machine().lower() in ("x86_64", "amd64"):
        avx2 = ["-mavx2", "-mfma", "-mf16c"]
        avx512 = [
            *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
            *("-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512"),
            # gcc 12's own AVX-512 headers leave "undefined" vectors uninitialised on purpose.
            *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
        ]
        for kernels in ("isa", "decode"):
            sources[CSRC / f"cpu/{kernels}_avx2.cpp"] = avx2
            sources[CSRC / f"cpu/{kernels}_avx512.cpp"] = avx512
            sources[CSRC / f"cpu/{kernels}_avx512_bf16.cpp"] = [*avx512, "-mavx512bf16"]
        if compiler_knows_amx():
            sources[CSRC / "cpu/isa_amx.cpp"] = [*avx512, *AMX_FLAGS]
            sources[CSRC / "cpu/launch.cpp"] = ["-DFUSED_ATTENTION_AMX"]
    return sources


def write_ninja_file(path: Path, library: Path, extra_flags: Sequence[str] = ()) -> None:
    """One compile edge per source, one link edge; dependencies on headers by gcc's depfiles."""
    from ninja import ninja_syntax
    from torch.utils import cpp_extension

    flags = [
        *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
        *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
        *("-DTORCH_STABLE_ONLY", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"),
        f"-I{CSRC / 'include'}",
        *(f"-isystem {p}" for p in cpp_extension.include_paths()),
        *extra_flags,
    ]
    libraries = [f"-L{p}" for p in cpp_extension.library_paths()]
    # libtorch.so keeps its place although nothing is taken from it directly: symbols resolve in
    # whichever libtorch the process has loaded.
    libraries += ["-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
    with path.open("w") as file:
        ninja = ninja_syntax.Writer(file)
        ninja.rule(
            "compile",
            command="$cxx -MMD -MF $out.d $flags $extra -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.rule("link", command="$cxx -shared $in -o $out $libraries")
        ninja.variable("cxx", os.environ.get("CXX", "c++"))
        ninja.variable("flags", " ".join(flags))
        ninja.variable("libraries", " ".join(libraries))
        objects = []
        for source, extra in cpu_sources().items():
            objects.append(str(path.parent / source.with_suffix(".o").name))
            ninja.build(objects[-1], "compile", str(source), variables={"extra": " ".join(extra)})
        ninja.build(str(library), "link", objects)
        ninja.default(str(library))


class NinjaBuild(build_ext):
    """Compiles through ninja: in parallel, and again only what has changed."""

    def get_ext_filename(self, fullname: str) -> str:
        """A plain .so: the library is loaded by torch, not imported by Python."""
        return os.path.join(*fullname.split(".")) + ".so"

    def copy_extensions_to_source(self) -> None:
        (ROOT / "python" / "fused_attention" / "lib").mkdir(exist_ok=True)
        super().copy_extensions_to_source()

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        folder = (ROOT / "build" / "ninja").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_ninja_file(folder / "build.ninja", library)
        jobs = os.environ.get("MAX_JOBS")
        command = [
            sys.executable,
            "-m",
            "ninja",
            "-C",
            str(folder),
            *(["-j", jobs] if jobs else []),
        ]
        subprocess.run(command, check=True)


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: native code, but not tied to a Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={"fused_attention": ["py.typed"]},
    ext_modules=[Extension(CPU_LIBRARY, sources=[])],
    cmdclass={"build_ext": NinjaBuild, "bdist_wheel": PlatformWheel},
)
