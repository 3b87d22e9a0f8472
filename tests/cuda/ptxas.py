"""What ptxas says of each kernel: registers, stack, spills, static shared memory."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
# C7508 and its neighbours: setmaxnreg ignored, wgmma put in a row. They are mere infos of ptxas.
_GIVEN_UP = re.compile(r"\(C75\d\d\)")


class KernelFacts(NamedTuple):
    """One kernel for one architecture; sizes are bytes, `shared` is static shared memory."""

    name: str  # mangled
    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def parse(lines: Iterable[str]) -> list[KernelFacts]:
    """The kernels of a log of `nvcc -Xptxas -v`."""
    found: list[KernelFacts] = []
    entry, stack = ("", ""), (0, 0, 0)
    for line in lines:
        if match := _ENTRY.search(line):
            entry = (match[1], match[2])
        elif match := _STACK.search(line):
            stack = (int(match[1]), int(match[2]), int(match[3]))
        elif entry[0] and (match := _USED.search(line)):
            shared = _SHARED.search(line)
            found.append(
                KernelFacts(*entry, int(match[1]), *stack, int(shared[1]) if shared else 0)
            )
            entry, stack = ("", ""), (0, 0, 0)
    return found


def optimisations_given_up(lines: Iterable[str]) -> list[str]:
    """Messages that a kernel for Hopper has lost what it was written for."""
    return [line.strip() for line in lines if _GIVEN_UP.search(line)]


def demangled(names: Sequence[str]) -> dict[str, str]:
    """Mangled -> "room::kernel<Config>", without arguments and what all names begin with."""
    command = ["c++filt", *names]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {mangled: _short(name) for mangled, name in zip(names, listed, strict=True)}


def _short(name: str) -> str:
    name = name.removeprefix("void ").replace("fused_attention::cuda::", "").replace("> >", ">>")
    return name.rpartition("(")[0] or name
