"""make cuda-table: what the compiled kernels cost, and how many blocks of them run at a time.

    python -m cuda.static_table            compile what has changed, print the table
    python -m cuda.static_table --write    and pin the register counts in registers.json

"blocks" are those of one multiprocessor of sm_80, sm_86 and sm_90. The code is that of sm_80, which
sm_86 runs as it is; sm_90 compiles its own from PTX, so there the number is an estimate.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cuda.occupancy import MULTIPROCESSORS, blocks_per_multiprocessor
from cuda.ptxas import KernelFacts, demangled, optimisations_given_up, parse

HERE = Path(__file__).resolve().parent
PINNED = HERE / "registers.json"
ABOUT = (
    "An expectation, pinned by hand and kept by tests/cuda/test_static_table.py: registers per "
    "thread of each kernel's sm_80 code. After a change that is meant to move them, run "
    "`make cuda-table WRITE=1` and look at the difference."
)
HEADERS = ("kernel", "registers", "spills", "stack", "threads", "shared", "blocks")


class Row(NamedTuple):
    """One kernel; `shared` is static and dynamic shared memory together, in bytes."""

    kernel: str
    facts: KernelFacts
    threads: int
    shared: int
    blocks: dict[str, int]  # arch -> on one multiprocessor

    def cells(self) -> list[str]:
        spilled = self.facts.spill_stores + self.facts.spill_loads
        numbers = (self.facts.registers, spilled, self.facts.stack, self.threads, self.shared)
        blocks = "/".join(str(self.blocks[arch]) for arch in MULTIPROCESSORS)
        return [self.kernel, *map(str, numbers), blocks]


def spilling(table: Sequence[Row]) -> list[str]:
    """Kernels that use the stack or spill."""
    return [row.kernel for row in table if row.facts.stack or row.facts.spill_stores]


def compile_logs() -> list[str]:
    """The lines that ptxas has written while the library was compiled; compiles what changed."""
    from cuda.library import FOLDER, cuda_library

    cuda_library()
    lines = []
    for log in sorted(FOLDER.glob("*.o.log")):
        if log.with_suffix("").exists():  # else of a source that is gone
            lines += log.read_text().splitlines()
    return lines


def launch_shapes() -> dict[str, tuple[int, int]]:
    """Part of a kernel's name -> threads, dynamic shared memory; as csrc's configs say."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "launch_shapes"
        source = HERE / "launch_shapes.cpp"
        include = HERE.parents[1] / "csrc" / "include"
        command = ["c++", "-std=c++17", f"-I{include}", str(source), "-o", str(program)]
        subprocess.run(command, check=True)
        told = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    cells = (line.split("\t") for line in told.splitlines())
    return {name: (int(threads), int(shared)) for name, threads, shared in cells}


def rows(lines: Sequence[str], shapes: dict[str, tuple[int, int]]) -> list[Row]:
    """A row for each kernel in a log, by name.

    Raises:
        KeyError: it is not known how a kernel is launched.
    """
    found = []
    facts = parse(lines)
    names = demangled([one.name for one in facts]) if facts else {}
    for one in facts:
        kernel = names[one.name]
        fitting = [shape for part, shape in shapes.items() if part in kernel]
        if len(fitting) != 1:
            raise KeyError(f"{kernel}: launch_shapes.cpp must say how it is launched")
        threads, dynamic = fitting[0]
        shared = one.shared + dynamic
        blocks = {
            arch: blocks_per_multiprocessor(arch, one.registers, threads, shared)
            for arch in MULTIPROCESSORS
        }
        found.append(Row(kernel, one, threads, shared, blocks))
    return sorted(found, key=lambda row: [_number(part) for part in re.split(r"(\d+)", row.kernel)])


def _number(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def text(table: Sequence[Row]) -> str:
    cells = [list(HEADERS), *(row.cells() for row in table)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    )


def nvcc_release() -> str:
    """Such as "13.0": another one allocates registers otherwise."""
    from cuda.build import nvcc

    told = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release ([\d.]+)", told)
    assert match is not None, told
    return match[1]


def pinned(path: Path = PINNED) -> dict[str, Any]:
    """{"about", "nvcc", "registers": {kernel: count}}"""
    return json.loads(path.read_text())


def pin(table: Sequence[Row], release: str, path: Path = PINNED) -> None:
    registers = {row.kernel: row.facts.registers for row in table}
    values = {"about": ABOUT, "nvcc": release, "registers": registers}
    path.write_text(json.dumps(values, indent=1) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Prints the table; 1 if a kernel spills or lost an optimisation."""
    lines = compile_logs()
    table = rows(lines, launch_shapes())
    print(text(table))
    wrong = spilling(table)
    given_up = optimisations_given_up(lines)
    print("\n".join([*(f"SPILLS: {kernel}" for kernel in wrong), *given_up]))
    if "--write" in arguments:
        pin(table, nvcc_release())
        print(f"wrote {PINNED}")
    return 1 if wrong or given_up else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
