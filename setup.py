"""Builds libfused_attention_{cpu,cuda}.so into fused_attention/lib with ninja, then packages them.

The libraries are bound to torch through LibTorch's stable ABI and have no Python linkage, so one
build serves every Python >= 3.10 and every torch >= 2.11 of the platform, also one without CUDA.

CPU: each instruction set is one source file with its own compiler flags; which one runs is decided
at run time. CUDA: nvcc compiles sources that know no torch.

FUSED_ATTENTION_CUDA=0|1|auto  build the CUDA library: never; always, or fail; auto, the default:
    where nvcc and a GPU are found, or where it was built into this tree before
FUSED_ATTENTION_CUDA_ARCHS="80;90a"  compute capabilities to compile for, or native: this machine's.
    The default is what the build before had, at first native, or where no GPU is seen 80, whose PTX
    serves every newer GPU
MAX_JOBS  compilers at once
CXX, CXXFLAGS  the C++ compiler, and flags behind those that it gets anyhow
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
LIBRARIES = ROOT / "python" / "fused_attention" / "lib"
PACKAGES = {  # what stands outside python/ is installed inside the package
    **{name: "python/" + name.replace(".", "/") for name in find_packages("python")},
    "fused_attention.benchmarks": "benchmarks",
    "fused_attention.triton_kernels": "triton_kernels",
}
CPU_LIBRARY = "fused_attention.lib.libfused_attention_cpu"
CUDA_LIBRARY = "fused_attention.lib.libfused_attention_cuda"
AMX_FLAGS = ("-mamx-tile", "-mamx-bf16")
TORCH_TARGET = "0x020b000000000000"  # the oldest torch whose ABI the library asks for: 2.11
NINJA = ROOT / "build" / "ninja"
ARCHS_FILE = NINJA / "cuda" / "archs"  # what FUSED_ATTENTION_CUDA_ARCHS said last
DEFAULT_ARCH = "80"


class Source(NamedTuple):
    """A file to compile, by which rule, with which flags of its own."""

    path: Path
    rule: str
    flags: list[str]


def compiler_knows_amx() -> bool:
    """Compilers before gcc 11 and assemblers before binutils 2.36 build the library without."""
    command = [*shlex.split(os.environ.get("CXX", "c++")), *AMX_FLAGS, "-x", "c++", "-c", "-"]
    code = 'void zero() { asm volatile("tilezero %tmm0"); }'
    result = subprocess.run([*command, "-o", os.devnull], input=code.encode(), capture_output=True)
    return result.returncode == 0


def cpu_sources() -> list[Source]:
    """What stands in csrc and csrc/cpu; the last part of a name says which flags a file gets."""
    flags: dict[str, list[str]] = {"binding": [], "launch": [], "portable": []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        flags["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
        flags["avx512"] = [
            *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
            *("-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512"),
            # gcc 12's own AVX-512 headers leave "undefined" vectors uninitialised on purpose.
            *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
        ]
        flags["avx512_bf16"] = [*flags["avx512"], "-mavx512bf16"]
        if compiler_knows_amx():
            flags["amx"] = [*flags["avx512"], *AMX_FLAGS]
            flags["launch"] = ["-DFUSED_ATTENTION_AMX"]
    sources = []
    for path in sorted((*CSRC.glob("*.cpp"), *(CSRC / "cpu").rglob("*.cpp"))):
        kind = next((k for k in sorted(flags, key=len)[::-1] if path.stem.endswith(k)), None)
        if kind is not None:
            sources.append(Source(path, "compile", flags[kind]))
    return sources


def cuda_sources(archs: list[str]) -> list[Source]:
    """Everything below csrc/cuda; the rooms of Hopper only where 90a is asked for."""
    portable = [arch for arch in archs if arch.isdigit()] or [archs[0].removesuffix("a")]
    sources = [Source(path, "compile", []) for path in sorted((CSRC / "cuda").rglob("*.cpp"))]
    for path in sorted((CSRC / "cuda").rglob("*.cu")):
        wanted = [arch for arch in archs if arch == "90a"] if "sm90" in path.parts else portable
        if wanted:
            sources.append(Source(path, "cuda", code_flags(wanted)))
    return sources


def code_flags(archs: Iterable[str]) -> list[str]:
    """Machine code for each arch, and the PTX of the oldest portable one for all that are newer."""
    archs = list(archs)
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    portable = sorted((arch for arch in archs if arch.isdigit()), key=int)
    return flags + [f"-gencode=arch=compute_{a},code=compute_{a}" for a in portable[:1]]


def cuda_home() -> Path | None:
    """The toolkit that has nvcc and its runtime, by CUDA_HOME, PATH or its usual place."""
    found = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), found and Path(found).resolve().parents[1]]
    for home in (Path(path) for path in (*candidates, "/usr/local/cuda") if path):
        has_runtime = any((home / lib / "libcudart_static.a").exists() for lib in ("lib64", "lib"))
        if has_runtime and (home / "bin" / "nvcc").exists():
            return home
    return None


def native_archs() -> list[str]:
    """Compute capabilities of this machine's GPUs from 80 on, as nvcc writes them."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    archs = {line.strip().replace(".", "") for line in done.stdout.splitlines()}
    return sorted((arch for arch in archs if arch.isdigit() and int(arch) >= 80), key=int)


def cuda_archs() -> list[str]:
    """FUSED_ATTENTION_CUDA_ARCHS as a list: "8.0;9.0a", "80,90a" and "80 90a" mean the same."""
    before = ARCHS_FILE.read_text() if ARCHS_FILE.exists() else "native"
    asked = os.environ.get("FUSED_ATTENTION_CUDA_ARCHS") or before
    if asked == "native":
        archs = native_archs() or [DEFAULT_ARCH]
        # Hopper's own instructions are those of 90a; everything else is compiled for 90.
        return [*archs, *(["90a"] if "90" in archs else [])]
    archs = asked.replace(".", "").replace(",", " ").replace(";", " ").split()
    for arch in archs:
        if not arch.removesuffix("a").isdigit() or int(arch.removesuffix("a")) < 80:
            sys.exit(
                f"FUSED_ATTENTION_CUDA_ARCHS: must name 80 or newer or be native, got {arch!r}"
            )
    return archs


def cuda_choice() -> str:
    asked = os.environ.get("FUSED_ATTENTION_CUDA") or "auto"
    if asked not in ("0", "1", "auto"):
        sys.exit(f"FUSED_ATTENTION_CUDA: must be 0, 1 or auto, got {asked!r}")
    return asked


def wants_cuda(asked: str) -> bool:
    """Whether to build the CUDA library; if auto decides against it, says why."""
    if asked == "0":
        return False
    if cuda_home() is None:
        if asked == "1":
            sys.exit("FUSED_ATTENTION_CUDA: 1 needs nvcc, by CUDA_HOME or on the PATH; none found")
        print("fused_attention: no nvcc was found, building for CPUs only", file=sys.stderr)
        return False
    if asked == "1" or (LIBRARIES / "libfused_attention_cuda.so").exists() or native_archs():
        return True
    print("fused_attention: no GPU was found, building for CPUs only", file=sys.stderr)
    return False


def host_flags() -> list[str]:
    from torch.utils import cpp_extension

    return [
        *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
        *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
        *("-DTORCH_STABLE_ONLY", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"),
        *(f"-I{CSRC}", f"-I{CSRC / 'include'}"),
        *(f"-isystem {p}" for p in cpp_extension.include_paths()),
        os.environ.get("CXXFLAGS", ""),
    ]


# -Xptxas -v: registers, spills and shared memory of each kernel, kept beside its object file.
CUDA_FLAGS = [
    *("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", "-Xptxas=-v"),
    *(f"-I{CSRC}", f"-I{CSRC / 'include'}"),
]


def link_flags(home: Path | None) -> list[str]:
    from torch.utils import cpp_extension

    # libtorch.so keeps its place although nothing is taken from it directly: symbols resolve in
    # whichever libtorch the process has loaded, that of a torch with CUDA too.
    torch = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
    flags = [*(f"-L{p}" for p in cpp_extension.library_paths()), *torch]
    if home is not None:
        # The runtime inside the library is its own: torch's must not take its symbols' place.
        flags += [f"-L{home / 'lib64'}", f"-L{home / 'lib'}", "-Wl,--exclude-libs,ALL"]
        flags += ["-lcudart_static", "-lrt", "-ldl", "-lpthread"]
    return flags


def write_ninja_file(
    path: Path, library: Path, sources: list[Source], home: Path | None = None
) -> None:
    """One compile edge per source, one link edge; dependencies on headers by depfiles."""
    from ninja import ninja_syntax

    with path.open("w") as file:
        ninja = ninja_syntax.Writer(file)
        dependencies = {"depfile": "$out.d", "deps": "gcc"}
        compile_ = "$cxx -MMD -MF $out.d $flags $extra -c $in -o $out"
        ninja.rule("compile", command=compile_, description="c++ $in", **dependencies)
        nvcc = "$nvcc -MD -MF $out.d $cuda_flags $extra -c $in -o $out > $out.log 2>&1"
        warnings = "(grep -E 'warning|[(]C75' $out.log || true)"
        nvcc = f"({nvcc} && {warnings}) || (cat $out.log; false)"
        ninja.rule("cuda", command=nvcc, description="nvcc $in", **dependencies)
        ninja.rule("link", "$cxx -shared $in -o $out $libraries", description="link $out")
        ninja.variable("cxx", os.environ.get("CXX", "c++"))
        ninja.variable("nvcc", str(home and home / "bin" / "nvcc"))
        ninja.variable("flags", " ".join(host_flags()))
        ninja.variable("cuda_flags", " ".join(CUDA_FLAGS))
        ninja.variable("libraries", " ".join(link_flags(home)))
        objects = []
        for source in sources:
            name = "_".join(source.path.relative_to(CSRC).with_suffix(".o").parts)
            objects.append(str(path.parent / name))
            extra = {"extra": " ".join(source.flags)}
            ninja.build(objects[-1], source.rule, str(source.path), variables=extra)
        ninja.build(str(library), "link", objects)
        ninja.default(str(library))


class NinjaBuild(build_ext):
    """Compiles through ninja: in parallel, and again only what has changed."""

    def get_ext_filename(self, fullname: str) -> str:
        """A plain .so: the library is loaded by torch, not imported by Python."""
        return os.path.join(*fullname.split(".")) + ".so"

    def finalize_options(self) -> None:
        """The CUDA library joins here, where something is built: reading metadata asks nothing."""
        asked = cuda_choice()
        if self.extensions is None and wants_cuda(asked):
            # With auto, a compiler that fails leaves a package for CPUs.
            cuda = Extension(CUDA_LIBRARY, sources=[], optional=asked == "auto")
            self.distribution.ext_modules.append(cuda)
        super().finalize_options()

    def copy_extensions_to_source(self) -> None:
        LIBRARIES.mkdir(exist_ok=True)
        super().copy_extensions_to_source()

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        kind = "cuda" if ext.name == CUDA_LIBRARY else "cpu"
        folder = NINJA / kind
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "cuda":
            archs = cuda_archs()
            ARCHS_FILE.write_text(" ".join(archs))
            sources = cuda_sources(archs)
            write_ninja_file(folder / "build.ninja", library, sources, cuda_home())
        else:
            write_ninja_file(folder / "build.ninja", library, cpu_sources())
        jobs = os.environ.get("MAX_JOBS")
        limit = ["-j", jobs] if jobs else []
        command = [sys.executable, "-m", "ninja", "-C", str(folder), *limit]
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(f"{library.name}: ninja failed, see above") from error


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: native code, but not tied to a Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        packages=list(PACKAGES),
        package_dir=PACKAGES,
        package_data={"fused_attention": ["py.typed"]},
        ext_modules=[Extension(CPU_LIBRARY, sources=[])],
        cmdclass={"build_ext": NinjaBuild, "bdist_wheel": PlatformWheel},
    )
