"""The CPU library once more, with AMX's instructions replaced by a model of them in plain C++."""

from __future__ import annotations

import functools
import os
import runpy
import subprocess
import sys
from typing import Any
from unittest import mock

import torch

from native.build import ROOT

OPERATORS = "fused_attention_amx_model"
REPLACED = ("cpu_attention", "cpu_attention_backward", "cpu_forward", "cpu_backward")
FOLDER = ROOT / "build" / "native" / "amx_model"
FLAGS = (
    "-DFUSED_ATTENTION_AMX_MODEL",
    f"-DFUSED_ATTENTION_OPERATORS={OPERATORS}",
    f"-I{ROOT / 'tests' / 'native'}",
    "-O2",
)


@functools.cache
def operators() -> Any:
    """The operators REPLACED and cpu_isas of that library.

    Sources and flags are those of setup.py; only what has changed is compiled.
    """
    with mock.patch("setuptools.setup"):
        build = runpy.run_path(str(ROOT / "setup.py"))
    FOLDER.mkdir(parents=True, exist_ok=True)
    library = FOLDER / "libfused_attention_amx_model.so"
    with mock.patch.dict(os.environ, CXXFLAGS=" ".join(FLAGS)):
        build["write_ninja_file"](FOLDER / "build.ninja", library, build["cpu_sources"]())
    subprocess.run([sys.executable, "-m", "ninja", "-C", str(FOLDER)], check=True)
    torch.ops.load_library(str(library))
    return getattr(torch.ops, OPERATORS)
