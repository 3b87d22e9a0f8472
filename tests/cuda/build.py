"""Builds what tests of a room of csrc/cuda need: its kernels' PTX, a module of its host code."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
from ninja import ninja_syntax
from ptxsim.nvcc import find_nvcc

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"


def nvcc() -> str:
    """Path of nvcc; without it the test is skipped."""
    found = find_nvcc()
    if found is None:
        pytest.skip("needs nvcc: in $CUDA_HOME/bin, in /usr/local/cuda/bin or on PATH")
    return found


class Room:
    """The compiled parts of a room.

    Args:
        name: of the pybind11 module.
        sources: C++ of the module.
        kernels: .cu files that become PTX.
    """

    def __init__(self, name: str, sources: Sequence[Path], kernels: Sequence[Path]) -> None:
        self.name, self.sources, self.kernels = name, sources, kernels

    @cached_property
    def folder(self) -> Path:
        """Where everything lies; compiles what has changed, on all cores."""
        folder = ROOT / "build" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two ninjas in a folder spoil what it remembers
            with (folder / "build.ninja").open("w") as file:
                self._write(ninja_syntax.Writer(file), folder)
            subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), *jobs], check=True)
        return folder

    @cached_property
    def module(self) -> ModuleType:
        """The pybind11 module."""
        spec = importlib.util.spec_from_file_location(self.name, self._library(self.folder))
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    def ptx(self, kernel: str) -> str:
        """The PTX of one of the .cu files, by its stem."""
        return (self.folder / f"{kernel}.ptx").read_text()

    def entry(self, kernel: str, *parts: str) -> str:
        """The mangled name in a file's PTX that contains all of `parts`."""
        names = re.findall(r"\.entry\s+(\w+)", self.ptx(kernel))
        (name,) = (name for name in names if all(part in name for part in parts))
        return name

    def _library(self, folder: Path) -> Path:
        return folder / (self.name + sysconfig.get_config_var("EXT_SUFFIX"))

    def _write(self, ninja: ninja_syntax.Writer, folder: Path) -> None:
        includes = [pybind11.get_include(), sysconfig.get_path("include"), CSRC / "include"]
        cxx = " ".join(["-std=c++17 -O1 -fPIC -fvisibility=hidden", *(f"-I{p}" for p in includes)])
        ptx = f"-std=c++17 -O3 -arch=compute_80 -ptx -I{CSRC / 'include'}"
        depfile = {"depfile": "$out.d", "deps": "gcc"}
        ninja.rule("compile", f"c++ -MMD -MF $out.d {cxx} -c $in -o $out", **depfile)
        ninja.rule("link", "c++ -shared $in -o $out")
        ninja.rule("ptx", f"{nvcc()} {ptx} -MD -MF $out.d $in -o $out", **depfile)
        objects = [str(folder / source.with_suffix(".o").name) for source in self.sources]
        for target, source in zip(objects, self.sources, strict=True):
            ninja.build(target, "compile", str(source))
        ninja.build(str(self._library(folder)), "link", objects)
        for kernel in self.kernels:
            ninja.build(str(folder / kernel.with_suffix(".ptx").name), "ptx", str(kernel))
