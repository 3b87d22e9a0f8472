"""A kernel ready to run: addresses of its variables, and its instructions, each compiled once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import instructions
from .errors import UnknownInstructionError
from .memory import GlobalMemory
from .parse import Instruction, Kernel
from .registers import Operands, Read
from .variables import TYPE_BYTES

_SLOTS = 32  # mbarriers of a block whose copies are told apart


@dataclass(slots=True)
class Step:
    """An instruction that can be executed: run(wave, gang) acts on the gang's lanes."""

    run: Any
    guard: Read | None
    negated: bool
    jumps: bool
    target: int


class Program:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.steps: list[Step | None] = [None] * (len(kernel.instructions) + 1)
        self.params: dict[str, int] = {}
        self.param_sizes: list[int] = []
        self.param_bytes = 0
        for parameter in kernel.parameters:
            size = parameter.size or 0
            self.param_bytes = -(-self.param_bytes // parameter.align) * parameter.align
            self.params[parameter.name] = self.param_bytes
            self.param_sizes.append(size)
            self.param_bytes += size
        self.symbols: dict[str, int] = {}
        self.static_bytes, self.dynamic_bytes = 0, 0
        self.released: dict[tuple[str, int], np.ndarray] = {}
        self.local_bytes = -(-self._lay_out("local") // 16) * 16
        self.static_bytes = self._lay_out("shared")
        self.dynamic_align = self._place_dynamic()
        self.shared_granule = self._granule("shared")
        self.global_granule = self._granule("global")
        bulk = any("bulk" in found.parts for found in kernel.instructions)
        self.bulk_slots = _SLOTS if bulk else 1
        self.operands = Operands(kernel, self.symbols, self.params)
        self.operands.accumulators = _asynchronous_registers(kernel)

    def _lay_out(self, space: str) -> int:
        end = 0
        for variable in self.kernel.variables.values():
            if variable.space == space and variable.size is not None:
                end = -(-end // variable.align) * variable.align
                self.symbols[variable.name] = end
                end += variable.size
        return end

    def _place_dynamic(self) -> int:
        """Dynamic shared memory follows the static; as on a device its start is 1024-aligned
        only if a declaration asks for that."""
        open_ended = [
            v for v in self.kernel.variables.values() if v.space == "shared" and v.size is None
        ]
        align = max([v.align for v in open_ended], default=16)
        start = -(-self.static_bytes // align) * align
        for variable in open_ended:
            self.symbols[variable.name] = start
        self.static_bytes = start if open_ended else self.static_bytes
        return align

    def place_globals(self, memory: GlobalMemory) -> None:
        """Variables of the module get room in device memory, constants as well."""
        for variable in self.kernel.variables.values():
            if variable.space in ("global", "const") and variable.size:
                content = np.zeros(variable.size, np.uint8)
                content[: len(variable.content)] = np.frombuffer(variable.content, np.uint8)
                self.symbols[variable.name] = memory.put(content, align=max(256, variable.align))

    def _granule(self, space: str) -> int:
        """Bytes that one piece of shadow memory stands for: the smallest access to the space."""
        smallest = 4
        for found in self.kernel.instructions:
            if found.name not in ("ld", "st", "atom", "red"):
                continue
            named = [p for p in found.parts if p.split("::")[0] in ("global", "shared", "local")]
            if any(p in ("param", "const", "local") for p in found.parts):
                continue
            if not named or named[0].startswith(space):
                smallest = min(smallest, TYPE_BYTES.get(found.type, 2))
        return smallest

    def decode(self, pc: int) -> Step:
        """The step of an instruction, compiled at its first execution."""
        found = self.kernel.instructions[pc] if pc < len(self.kernel.instructions) else None
        if found is None:
            raise UnknownInstructionError("the kernel runs past its last instruction")
        guard = self.operands.read(found.guard, "pred") if found.guard else None
        if found.name == "bra":
            step = Step(None, guard, found.negated, True, found.target)
        else:
            step = Step(self.compile(found), guard, found.negated, False, -1)
        self.steps[pc] = step
        return step

    def compile(self, found: Instruction) -> Any:
        compiler = instructions.TABLE.get(found.name)
        if compiler is None:
            raise UnknownInstructionError(f"unknown instruction at {found.where()}")
        self.operands.moves = found.name == "mov"
        try:
            return compiler(self.operands, found)
        except UnknownInstructionError as error:
            raise UnknownInstructionError(f"{error} at {found.where()}") from None
        except (KeyError, IndexError, ValueError, StopIteration) as error:
            message = f"unknown form of an instruction ({error!r}) at {found.where()}"
            raise UnknownInstructionError(message) from error


def _asynchronous_registers(kernel: Kernel) -> set[str]:
    """Registers that a wgmma reads or writes after it was issued."""
    found: set[str] = set()
    for instruction in kernel.instructions:
        if instruction.name == "wgmma" and "mma_async" in instruction.parts:
            for operand in instruction.operands[:2]:
                if operand.startswith("{"):
                    found.update(re.findall(r"%?[\w$@]+", operand))
    return found
