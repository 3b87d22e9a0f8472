"""The table of instructions: name -> compiler, which turns one into run(wave, gang)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..parse import Instruction
from ..registers import Operands

Compiler = Callable[[Operands, Instruction], Any]
TABLE: dict[str, Compiler] = {}


def instruction(*names: str) -> Callable[[Compiler], Compiler]:
    """Registers a compiler for the opcodes that begin with one of `names`."""

    def register(compiler: Compiler) -> Compiler:
        for name in names:
            TABLE[name] = compiler
        return compiler

    return register
