"""The rooms of the package: who may import whom, who may see torch, and how long a file may be."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "fused_attention"
PYTHON_LINES, KERNEL_LINES, COLUMNS = 300, 450, 100
KERNEL_SUFFIXES = {".cpp", ".h", ".cu", ".cuh"}

# Every room and the rooms that it may import. Arrows only point down; the order is that of the
# layers, from the bottom up. "public" are the names that fused_attention itself exports.
ARROWS: dict[str, set[str]] = {
    "masks": set(),
    "text": set(),
    "arguments": set(),
    "autocast": set(),
    "files": set(),
    "_ext": set(),
    "triton_kernels": set(),
    "philox": set(),
    "shortcut": set(),
    "selection": set(),
    "transforms": {"autocast", "shortcut"},
    "mechanism": {"autocast"},
    "formulas": {"masks", "philox"},
    "packed": {"formulas"},
    "reference": {"formulas", "masks", "packed", "philox"},
    "checks": {"masks"},
    "options": {"masks"},
    "problem": {"checks", "masks"},
    "decode_problem": {"checks", "masks"},
    "decode_reference": {"masks", "reference"},
    "decode_checks": {"checks"},
    "backends": {
        *("_ext", "autocast", "triton_kernels", "reference", "decode_reference", "masks"),
        "selection",
    },
    "signature": {"backends"},
    "batching": {"backends", "signature"},
    "forward_mode": {"autocast", "backends", "batching", "checks", "signature"},
    "merge": {"checks"},
    "support": {"backends", "decode_problem", "problem", "masks", "text"},
    "dispatch": {"backends", "decode_problem", "problem", "selection", "support"},
    "autograd": {
        *("autocast", "backends", "batching", "checks", "forward_mode", "shortcut", "signature"),
        "transforms",
    },
    "operators": {
        *("autocast", "batching", "forward_mode", "mechanism", "selection", "shortcut"),
        "transforms",
    },
    "prepare": {
        *("autocast", "autograd", "backends", "checks", "dispatch", "masks", "options"),
        "problem",
    },
    "plain_calls": {
        *("autograd", "backends", "batching", "masks", "options", "prepare", "shortcut"),
    },
    "decoding": {
        *("backends", "decode_checks", "decode_problem", "dispatch", "masks", "options"),
        *("prepare", "shortcut"),
    },
    "functional": {"checks", "dispatch", "masks", "merge", "options", "plain_calls", "prepare"},
    "additive": {
        *("_ext", "autocast", "backends", "checks", "formulas", "masks", "mechanism", "operators"),
        *("prepare", "selection", "triton_kernels"),
    },
    "local": {
        *("_ext", "autocast", "backends", "checks", "formulas", "masks", "mechanism", "operators"),
        *("prepare", "problem", "selection", "triton_kernels"),
    },
    "maps": {
        *("_ext", "additive", "autocast", "backends", "checks", "formulas", "local", "masks"),
        *("packed", "prepare", "problem", "selection", "triton_kernels"),
    },
    "public": {
        *("additive", "decoding", "dispatch", "functional", "local", "maps", "masks", "merge"),
    },
}
# Above all that. They call what is public, and nobody below calls them.
TOP = {
    "log": set(),
    "nn": {"log"},
    "models": {"nn"},
    "compat": {"nn", "log"},
    "integrations": {"compat", "nn", "log"},
    "conversion": {"nn", "log"},
    "distributed": {"nn", "models"},
    "training": {"nn", "models", "log"},
    "benchmarks": {"nn", "models", "training", "compat", "integrations"},
    "cli": {"nn", "models", "training", "benchmarks", "log"},
}
ARROWS |= {room: below | set(ARROWS) for room, below in TOP.items()}


def room_of(path: Path, package: Path = PACKAGE) -> str:
    """The first folder or the module below the package; its own __init__ is "public"."""
    first = path.relative_to(package).parts[0].removesuffix(".py")
    return "public" if first == "__init__" else first


def imports(node: ast.AST, package: str) -> Iterator[str]:
    """Full names of what a module imports at run time; `package` is what a dot stands for."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = [node.module] if node.module else []
        if node.level:
            parts = package.split(".")
            base = [*parts[: len(parts) - node.level + 1], *base]
        yield from (".".join([*base, alias.name]) for alias in node.names)
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = iter(node.orelse)
    for child in children:
        yield from imports(child, package)


def imported_room(name: str) -> str | None:
    """The room of a full name; None outside of the package."""
    top, *rest = name.split(".")
    if top != "fused_attention":
        return None
    # `from fused_attention import backends` gives the function of that name.
    return (
        rest[0] if len(rest) > 1 or (rest and rest[0] in set(ARROWS) - {"backends"}) else "public"
    )


def forbidden(source: str, room: str, package: str = "fused_attention") -> list[str]:
    """The imports of a module in `room` that its arrows do not allow."""
    names = imports(ast.parse(source), package)
    found = {name: imported_room(name) for name in names}
    return [n for n, r in found.items() if r not in (None, room) and r not in ARROWS[room]]


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "python").parent.parts)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


MODULES = python_files("python/fused_attention")
FOREIGN_ROOMS = {"triton_kernels": "triton_kernels", "benchmarks": "benchmarks"}


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_arrows_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in ARROWS, f"{room}: a new room; say in ARROWS what it may import"
    assert forbidden(path.read_text(), room, dotted(path)) == []


@pytest.mark.parametrize("folder", FOREIGN_ROOMS)
def test_arrows_of_rooms_outside_the_package_folder(folder: str) -> None:
    for path in python_files(folder):
        package = ".".join(("fused_attention", *path.relative_to(ROOT).parent.parts))
        assert forbidden(path.read_text(), FOREIGN_ROOMS[folder], package) == [], path


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent.name == "backends"], ids=ids
)
def test_backends_do_not_know_each_other(path: Path) -> None:
    if path.name in ("__init__.py", "call.py"):
        return
    known = {"fused_attention.backends.call", f"fused_attention.backends.{path.stem}"}
    names = list(imports(ast.parse(path.read_text()), dotted(path)))
    others = [
        name
        for name in names
        if name.startswith("fused_attention.backends")
        and ".".join(name.split(".")[:3]) not in known
    ]
    assert others == []


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_core_needs_nothing_but_torch(path: Path) -> None:
    """Only the rooms at the top may use more; triton only where its kernels are called."""
    room = room_of(path)
    if room in TOP:
        return
    allowed = {"torch", "fused_attention", *sys.stdlib_module_names}
    if path.relative_to(PACKAGE).as_posix() == "backends/triton.py":
        allowed.add("triton")
    names = {name.split(".")[0] for name in imports(ast.parse(path.read_text()), dotted(path))}
    assert names <= allowed


def test_triton_kernels_need_nothing_but_triton() -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for path in python_files("triton_kernels"):
        package = ".".join(("fused_attention", *path.relative_to(ROOT).parent.parts))
        for name in imports(ast.parse(path.read_text()), package):
            own = name.startswith("fused_attention.triton_kernels")
            assert own or name.split(".")[0] in allowed, f"{ids(path)}: {name}"


def test_arrows_have_no_cycle() -> None:
    order = list(ARROWS)
    for room in list(ARROWS)[: order.index("public") + 1]:
        assert all(order.index(below) < order.index(room) for below in ARROWS[room]), room


INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def forbidden_includes(path: Path, source: str) -> list[str]:
    """torch outside the bindings, and rooms of csrc that must not see each other."""
    parts = path.parts
    hidden = [] if path.stem.endswith("binding") else ["torch/", "ATen/", "c10/", "Python.h"]
    if "sm80" in parts:
        hidden += ["sm90"]
    if "sm90" in parts:
        hidden += ["sm80"]
    if "cpu" in parts:
        hidden += ["cuda"]
    if "cuda" in parts:
        hidden += ["cpu/"]
    if "include" in parts:
        hidden += ["cpu/", "cuda/"]
    return [name for name in INCLUDE.findall(source) if any(part in name for part in hidden)]


def kernel_files() -> list[Path]:
    return sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in KERNEL_SUFFIXES)


@pytest.mark.parametrize("path", kernel_files(), ids=ids)
def test_kernels_know_no_torch(path: Path) -> None:
    assert forbidden_includes(path.relative_to(ROOT / "csrc"), path.read_text()) == []


ALL_PYTHON = [ROOT / "setup.py", *MODULES, *python_files("triton_kernels", "benchmarks", "tests")]


@pytest.mark.parametrize("path", [*ALL_PYTHON, *kernel_files()], ids=ids)
def test_files_are_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    limit = KERNEL_LINES if path.suffix in KERNEL_SUFFIXES else PYTHON_LINES
    assert len(lines) <= limit, f"{len(lines)} lines, {limit} are allowed"
    wide = [number for number, line in enumerate(lines, 1) if len(line) > COLUMNS]
    assert not wide, f"more than {COLUMNS} columns in lines {wide}"


VIOLATIONS = {
    "masks": "from fused_attention.problem import Problem",
    "problem": "import fused_attention.dispatch",
    "backends": "def f():\n    from fused_attention import functional",
    "dispatch": "from .functional import attention",
    "functional": "from fused_attention.cli import main",
    "nn": "from fused_attention.models import gpt",
    "reference": "if TYPE_CHECKING:\n    x = 1\nelse:\n    from fused_attention import attention",
}


@pytest.mark.parametrize("room", VIOLATIONS)
def test_upward_arrows_are_seen(room: str) -> None:
    assert len(forbidden(VIOLATIONS[room], room)) == 1


def test_types_may_come_from_above() -> None:
    source = "if TYPE_CHECKING:\n    from fused_attention.problem import Problem"
    assert forbidden(source, "backends") == []
    assert forbidden("from fused_attention import attention, Band, backends", "nn") == []
    assert forbidden("from . import cpu", "backends", "fused_attention.backends") == []


def test_wrong_includes_are_seen() -> None:
    assert forbidden_includes(Path("cpu/a.h"), "#include <torch/headeronly/x.h>") != []
    assert forbidden_includes(Path("cuda/sm80/a.cuh"), ' # include "../sm90/tma.h"') != []
    assert forbidden_includes(Path("cuda/sm80/a.cuh"), '#include "cuda/common/check.h"') == []
    assert forbidden_includes(Path("binding.cpp"), "#include <torch/csrc/stable/ops.h>") == []
