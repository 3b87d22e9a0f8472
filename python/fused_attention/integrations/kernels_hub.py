"""Lays this package out as a kernel of the Hugging Face hub: what `kernels.get_kernel` loads.

    python -m fused_attention.integrations.kernels_hub OUT

writes OUT/build/<variant>/ with the modules that flash-attn's functions need, the compiled library
and metadata.json. The loader gives the kernel a module name of its own and may load several
versions of it into one process, beside an installed fused_attention, so nothing in there may count
on a name: imports are relative, and the operators have a namespace that no other build has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fused_attention import __version__, _ext
from fused_attention.integrations._kernel_sources import PACKAGE, collect, with_namespace

NAME = "fused-attention"
# What transformers and others look for in a kernel for attention.
EXPORTS = ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache")
_MODULES = {
    "compat.flash_attn": EXPORTS,
    "functional": ("attention", "attention_varlen", "explain", "merge_attention"),
    "dispatch": ("backends",),
    "masks": ("Band",),
}
STABLE_ABI = "torch-stable-abi211"  # the oldest torch that the compiled library works with
# Loads a variant as the loader does and attends once with it.
_CHECK = f"""
import importlib.util, json, sys, torch
folder = sys.argv[1]
sys.modules[{PACKAGE!r}] = None  # it must stand on its own
name = json.load(open(folder + "/metadata.json"))["id"]
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
kernel = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
missing = [export for export in {EXPORTS!r} if not hasattr(kernel, export)]
assert not missing, missing
q, k, v = torch.randn(3, 1, 5, 2, 8)
out = kernel.flash_attn_func(q, k, v, causal=True)
torch.testing.assert_close(out[:, 0], v[:, 0])
"""


def lay_out(out: Path, backends: Sequence[str] = ("cpu",)) -> list[Path]:
    """Write the kernel's variants; what stands in their folders is replaced.

    Args:
        out: the repository; the variants come under out/build.
        backends: what the torch that loads the kernel is built for, as the loader names it: "cpu",
            "cu130", ... Each gets a variant for this platform with the compiled library, if that
            has been built, and one without it for all other platforms.

    Returns:
        The variants' folders.

    Raises:
        ValueError: a backend is neither "cpu" nor "cu" and a version; or the package is not as
            this needs it, the message says where.
    """
    for backend in backends:
        if not re.fullmatch(r"cpu|cu\d+", backend):
            raise ValueError(f'backends: must be "cpu" or "cu" and a version, got {backend!r}')
    sources = collect([f"{PACKAGE}.{module}" for module in _MODULES])
    sources["__init__.py"] = _init()
    libraries = {path.name: path.read_bytes() for path in _ext.LIBRARY_FOLDER.glob("*.so")}
    system = f"{platform.machine()}-{platform.system()}".lower()
    folders = []
    for backend in backends:
        family = "cpu" if backend == "cpu" else "cuda"
        variants: dict[str, Mapping[str, bytes]] = {f"torch-{family}": {}}
        if libraries:
            variants[f"{STABLE_ABI}-{backend}-{system}"] = libraries
        for variant, its_libraries in variants.items():
            folder = out / "build" / variant
            namespace = _namespace(variant, sources, its_libraries)
            _write(folder, sources, its_libraries, namespace)
            metadata = _metadata(f"{namespace}_{variant}", family)
            (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
            folders.append(folder)
    return folders


def check(folder: Path) -> None:
    """Load a variant in a process of its own, without this package, and compute something.

    Raises:
        RuntimeError: that failed; the message holds what the process wrote.
    """
    command = [sys.executable, "-c", _CHECK, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{folder}: cannot be loaded as a kernel\n{done.stderr}")


def _init() -> str:
    """The kernel's own __init__.py."""
    lines = ['"""The functions of flash-attn on fused kernels, and those of the kernels\' own."""']
    lines += [f"from .{module} import {', '.join(names)}" for module, names in _MODULES.items()]
    exported = sorted(name for names in _MODULES.values() for name in names)
    lines += [f"__all__ = {json.dumps(exported)}", f"__version__ = {__version__!r}", ""]
    return "\n".join(lines)


def _namespace(variant: str, sources: Mapping[str, str], libraries: Mapping[str, bytes]) -> str:
    """As long as the package's name, which it replaces in compiled libraries."""
    digest = hashlib.sha256(variant.encode())
    for path, content in sorted(sources.items()):
        digest.update(f"{path}\n{content}".encode())
    for _, library in sorted(libraries.items()):
        digest.update(library)
    prefix = "fused_attn_"
    return prefix + digest.hexdigest()[: len(PACKAGE) - len(prefix)]


def _metadata(identifier: str, family: str) -> dict[str, object]:
    return {
        "id": re.sub(r"\W", "_", identifier),
        "name": NAME,
        "version": 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": family},
    }


def _write(
    folder: Path, sources: Mapping[str, str], libraries: Mapping[str, bytes], namespace: str
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for path, source in sources.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(with_namespace(source, namespace))
    for name, library in libraries.items():
        file = folder / _ext.LIBRARY_FOLDER.name / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(_renamed(name, library, namespace))


def _renamed(name: str, library: bytes, namespace: str) -> bytes:
    """A compiled library that registers its operators under `namespace`.

    The package's name stands in it once as a string of its own: what it passes to torch as its
    namespace. The new one is as long, so nothing else moves, and no compiler is needed.
    """
    old, new = (b"\0" + text.encode() + b"\0" for text in (PACKAGE, namespace))
    if library.count(old) != 1 or len(old) != len(new):
        raise ValueError(f"{name}: must hold {PACKAGE!r} once, got {library.count(old)} times")
    return library.replace(old, new)


def main(arguments: Iterable[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_attention.integrations.kernels_hub",
        description="Lay this package out as a kernel of the Hugging Face hub.",
    )
    parser.add_argument("out", type=Path, help="folder of the kernel repository")
    parser.add_argument(
        "--backend",
        action="append",
        help="cpu (default), cu130, ...: what the torch that loads the kernel is built for",
    )
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        folders = lay_out(options.out, options.backend or ("cpu",))
    except ValueError as error:
        parser.error(str(error))
    for folder in folders:
        check(folder)
        print(folder)


if __name__ == "__main__":
    main()
