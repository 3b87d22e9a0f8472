"""make triton-table: what the kernels that Triton compiles cost on each kind of GPU.

    python -m triton_compiled.static_table            compile, print the table
    python -m triton_compiled.static_table --write    and pin the registers in registers.json

Every kernel at its fixed config, bf16, causal. "blocks" run at a time on a multiprocessor; "wgmma"
and "TMA" are instructions in the PTX.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from cuda.occupancy import blocks_per_multiprocessor
from triton import knobs
from triton_compiled.calls import CALLS
from triton_compiled.compile import Compiler

PINNED = Path(__file__).with_name("registers.json")
ABOUT = (
    "An expectation, pinned by hand and kept by tests/triton_compiled/test_static_table.py: "
    "registers per thread of each kernel. After a change that is meant to move them, run "
    "`make triton-table WRITE=1` and look at the difference."
)
ARCHS, DIMS = ("sm_80", "sm_90"), (64, 128)
# Of calls that compile another call's kernels for other constants.
PREFIXES = {"fused_backward": "fused_", "additive_keys": "keys_"}
HEADERS = ("kernel", "dim", "registers", "stack", "threads", "shared", "blocks", "wgmma", "TMA")


class Row(NamedTuple):
    """One kernel of one chip; stack and shared memory in bytes."""

    arch: str
    kernel: str
    dim: int
    registers: int
    stack: int  # holds what is spilled
    threads: int
    shared: int
    blocks: int  # of one multiprocessor
    wgmma: int
    tma: int

    @property
    def name(self) -> str:
        return f"{self.arch} {self.kernel} {self.dim}"

    def cells(self) -> list[str]:
        return [f"{self.arch} {self.kernel}", *map(str, self[2:])]


def row_of(compiled: Any, arch: str, kind: str, dim: int) -> Row:
    """What a compiled kernel needs, as cuobjdump tells of its code."""
    used = resources(compiled.asm["cubin"])
    threads, shared = compiled.metadata.num_warps * 32, compiled.metadata.shared
    ptx = compiled.asm["ptx"]
    kernel = compiled.metadata.name.removesuffix("_kernel")
    return Row(
        arch,
        PREFIXES.get(kind, "") + kernel,
        dim,
        used["REG"],
        used["STACK"],
        threads,
        shared,
        blocks_per_multiprocessor(arch.removeprefix("sm_"), used["REG"], threads, shared),
        ptx.count("wgmma.mma_async"),
        ptx.count("cp.async.bulk.tensor"),
    )


def resources(cubin: bytes) -> dict[str, int]:
    """{"REG": ..., "STACK": ..., ...} of the one kernel in there."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(count) for name, count in re.findall(r"\b([A-Z]+):(\d+)", told)}


@functools.cache
def table() -> tuple[Row, ...]:
    """A row for each kernel, chip and dim."""
    found: dict[str, Row] = {}
    for arch in ARCHS:
        for dim in DIMS:
            for kind, call in CALLS.items():
                compiler = Compiler(arch)
                call(compiler, dim, torch.bfloat16)
                for compiled in compiler.compiled:
                    if compiled.hash not in found:  # several calls may share a kernel
                        found[compiled.hash] = row_of(compiled, arch, kind, dim)
    return tuple(found.values())


def text(rows: Sequence[Row]) -> str:
    cells = [list(HEADERS), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    )


def pinned(path: Path = PINNED) -> dict[str, Any]:
    """{"about", "triton", "registers": {"arch kernel dim": count}}"""
    return json.loads(path.read_text())


def pin(rows: Sequence[Row], path: Path = PINNED) -> None:
    registers = {row.name: row.registers for row in rows}
    values = {"about": ABOUT, "triton": triton.__version__, "registers": registers}
    path.write_text(json.dumps(values, indent=1) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Prints the table; 1 if a kernel spills."""
    rows = table()
    print(f"Triton {triton.__version__}\n{text(rows)}")
    wrong = [row.name for row in rows if row.stack]
    print("\n".join(f"SPILLS: {name}" for name in wrong))
    if "--write" in arguments:
        pin(rows)
        print(f"wrote {PINNED}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
