"""What is carried to a machine without network: a wheel of this checkout, and wheels of tools.

    make cuda            leaves the wheel, with both libraries, in CARRY
    python -m gpu_run --prepare 3.12 --carry CARRY

The manifest holds a hash of the sources: a wheel of other sources is never run.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

MANIFEST = "manifest.json"
TOOLS = "tools"  # the folder of their wheels
TOOL_NAMES = ("pytest", "hypothesis", "numpy", "rich", "setuptools>=77", "ninja")
SOURCES = ("csrc", "python", "benchmarks", "triton_kernels", "setup.py", "pyproject.toml")
SUFFIXES = {".py", ".toml", ".h", ".cuh", ".cpp", ".cu", ".json"}
CUDA_LIBRARY = "fused_attention/lib/libfused_attention_cuda.so"
LARGEST_BYTES = 40 * 10**6


def source_files(root: Path) -> Iterable[Path]:
    """Everything that ends up in a wheel, compiled or not."""
    for name in SOURCES:
        path = root / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            hidden = "__pycache__" in file.parts or file.parent.suffix == ".egg-info"
            if file.suffix in SUFFIXES and not hidden and file.is_file():
                yield file


def source_hash(root: Path) -> str:
    """A hash of names and contents of all sources."""
    digest = hashlib.sha256()
    for path in source_files(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def find_wheel(folder: Path) -> Path | None:
    wheels = sorted(folder.glob("fused_attention-*.whl"))
    return wheels[-1] if wheels else None


def why_not_carried(root: Path, folder: Path) -> str | None:
    """Why the wheel in `folder` cannot be used for the checkout `root`; None if it can."""
    wheel = find_wheel(folder)
    if wheel is None:
        return f"{folder} holds no wheel of fused_attention"
    try:
        sources = json.loads((folder / MANIFEST).read_text())["sources"]
    except (OSError, ValueError, KeyError):
        return f"{folder} has no manifest"
    if sources != source_hash(root):
        return f"{wheel.name} was built from other sources"
    if CUDA_LIBRARY not in zipfile.ZipFile(wheel).namelist():
        return f"{wheel.name} has no CUDA library"
    return None


def unpack(wheel: Path, site: Path) -> None:
    """A wheel is an archive of what belongs into site-packages; so it needs no pip."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def tool_wheels(folder: Path) -> dict[str, Path]:
    """Distribution name -> wheel, of those that this Python can use."""
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = {}
    for path in (folder / TOOLS).glob("*.whl"):
        name, *_, python, abi, _ = path.stem.split("-")
        if python.startswith("py") or python == own or abi == "abi3":
            wheels[name] = path
    return wheels


def prepare(root: Path, folder: Path, python: str) -> int:
    """Add the tools' wheels for that version of Python and the manifest; 0 if all is there."""
    wheel = find_wheel(folder)
    if wheel is None:
        print(f"{folder} holds no wheel of fused_attention: make cuda", file=sys.stderr)
        return 1
    manifest = {"sources": source_hash(root), "wheel": wheel.name, "python": python}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    command += ["--only-binary=:all:", "--python-version", python, "--dest", str(folder / TOOLS)]
    done = subprocess.run([*command, *TOOL_NAMES], check=False)
    if done.returncode:
        print("the tools' wheels could not be fetched: a runner must have them", file=sys.stderr)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    tools = len(list((folder / TOOLS).glob("*.whl")))
    print(f"{folder}: {size / 1e6:.1f} MB, {wheel.name} and {tools} tools")
    if size > LARGEST_BYTES:
        print(f"that is more than {LARGEST_BYTES / 1e6:.0f} MB", file=sys.stderr)
        return 1
    return done.returncode
