"""Builds and imports the pybind11 module of module.cpp, with ninja, in build/native."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
from ninja import ninja_syntax

ROOT = Path(__file__).resolve().parents[2]
NAME = "fused_attention_native"


@functools.cache
def native_module() -> ModuleType:
    """The compiled module; compiled anew only when a header or module.cpp has changed."""
    folder = ROOT / "build" / "native"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / (NAME + sysconfig.get_config_var("EXT_SUFFIX"))
    includes = [ROOT / "csrc/include", pybind11.get_include(), sysconfig.get_path("include")]
    flags = " ".join(["-std=c++17 -O2 -fPIC -fvisibility=hidden", *(f"-I{p}" for p in includes)])
    with (folder / "build.ninja").open("w") as file:
        ninja = ninja_syntax.Writer(file)
        ninja.rule(
            "module",
            command=f"c++ -MMD -MF $out.d {flags} -shared $in -o $out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.build(str(library), "module", str(Path(__file__).with_name("module.cpp")))
    subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder)], check=True)
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
