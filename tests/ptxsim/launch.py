"""launch(): runs a kernel of a PTX text on numpy arrays."""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .bank_conflicts import BankConflicts
from .errors import UnknownInstructionError
from .memory import GlobalMemory
from .module import parse
from .program import Program
from .schedule import execute
from .shadow import GlobalShadow
from .wave import DONE, Wave


@dataclass
class Report:
    """What a launch did: warp instructions, steps of gangs, bank conflicts if asked for."""

    instructions: int = 0
    steps: int = 0
    banks: BankConflicts = field(default_factory=BankConflicts)


@functools.lru_cache(maxsize=32)
def _program(ptx: str, kernel: str | None) -> Program:
    module = parse(ptx)
    known = sorted(module.openings)
    names = [name for name in known if name == kernel] or [n for n in known if (kernel or "") in n]
    if len(names) != 1:
        raise ValueError(f"kernel: {kernel!r} fits {names or 'none'} of {known}")
    return Program(module.kernel(names[0]))


def unknown_instructions(ptx: str) -> list[str]:
    """What the emulator could not execute of any kernel of a module; empty if nothing is amiss."""
    found = set()
    for name in parse(ptx).openings:
        program = _program(ptx, name)
        program.place_globals(GlobalMemory())
        for number in range(len(program.kernel.instructions)):
            try:
                program.decode(number)
            except UnknownInstructionError as error:
                found.add(str(error))
    return sorted(found)


def _encode(value: Any, size: int, memory: GlobalMemory) -> bytes:
    if isinstance(value, np.ndarray):
        return struct.pack("<Q", memory.put(value))
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, float):
        return struct.pack("<f" if size == 4 else "<d", value)
    return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def launch(
    ptx: str,
    kernel: str | None,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared_bytes: int = 0,
    *,
    seed: int | None = None,
    memory: GlobalMemory | None = None,
    resident: int = 16,
    count_banks: bool = False,
    step_limit: int = 3_000_000,
) -> Report:
    """Runs a kernel and raises a SimulationError for whatever is wrong with it.

    kernel: its name or a part of it that no other has; None if the module has only one.
    args: numpy arrays (device buffers, written back), ints, floats, or bytes for structs by value;
    pointers inside of structs are addresses that `memory.put` gave. shared_bytes: dynamic shared
    memory. seed: None is one fixed schedule, a number a random one. resident: blocks that run
    together. count_banks: counts wavefronts of shared memory (slower). step_limit: steps of
    gangs after which the kernel counts as endless.
    """
    program = _program(ptx, kernel)
    own = memory if memory is not None else GlobalMemory()
    if len(args) != len(program.param_sizes):
        raise ValueError(f"args: {len(program.param_sizes)} of them are needed, got {len(args)}")
    arrays: list[tuple[int, np.ndarray]] = []
    parameters = np.zeros(-(-program.param_bytes // 16) * 16 + 16, np.uint8)
    for value, size, start in zip(args, program.param_sizes, program.params.values(), strict=True):
        encoded = _encode(value, size, own)
        if len(encoded) != size:
            raise ValueError(f"args: {len(encoded)} bytes for a parameter of {size}")
        parameters[start : start + size] = np.frombuffer(encoded, np.uint8)
        if isinstance(value, np.ndarray):
            arrays.append((struct.unpack("<Q", encoded)[0], value))
    report = _run(
        program,
        tuple(grid),
        tuple(block),
        own,
        parameters,
        shared_bytes,
        seed,
        resident,
        count_banks,
        step_limit,
    )
    for address, array in arrays:
        if array.flags.writeable:
            array[...] = own.get(address)
    return report


def _three(extent: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*extent, 1, 1)[:3]
    return int(x), int(y), int(z)


def _run(
    program: Program,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    memory: GlobalMemory,
    parameters: np.ndarray,
    shared_bytes: int,
    seed: int | None,
    resident: int,
    count_banks: bool,
    step_limit: int,
) -> Report:
    report = Report()
    program.place_globals(memory)
    program.dynamic_bytes = shared_bytes
    program.released = {}
    x, y, z = _three(grid)
    ids = [(i, j, k) for k, j, i in itertools.product(range(z), range(y), range(x))]
    random = None if seed is None else np.random.default_rng(seed)
    if random is not None:
        ids = [ids[n] for n in random.permutation(len(ids))]
    shadow: GlobalShadow | None = None
    width = min(resident, len(ids))
    for start in range(0, len(ids), max(1, width)):
        part = ids[start : start + width]
        padded = part + [part[0]] * (width - len(part))
        wave = Wave(program, _three(grid), _three(block), padded, memory, parameters,
                    program.static_bytes + shared_bytes, random)  # fmt: skip
        for missing in range(len(part), width):
            wave.pc[missing::width] = DONE
        if shadow is None:
            shadow = GlobalShadow(memory.top, program.global_granule, wave.clocks)
            shadow.forget(memory.unwritten)
        else:
            shadow.next_wave(wave.clocks)
        wave.global_shadow = shadow
        wave.banks = report.banks if count_banks else None
        with np.errstate(all="ignore"):
            execute(wave, step_limit)
        wave.order.carry_over()
        report.instructions += wave.executed
        report.steps += wave.steps
    return report
