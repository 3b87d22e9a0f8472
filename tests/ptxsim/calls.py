"""Calls: the instructions of a function take the place of the call, under names of their own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from .errors import UnknownInstructionError
from .parse import Instruction, Kernel
from .variables import split_operands

_NAME = re.compile(r"[%$\w@]+")
_MOST = 2000


def expand(kernel: Kernel, function: Callable[[str], Kernel | None]) -> Kernel:
    """The kernel without calls of functions that have a body; the others stay."""
    at = count = 0
    while at < len(kernel.instructions):
        call = kernel.instructions[at]
        callee = function(_callee(call)) if call.name == "call" else None
        if callee is None:
            at += 1
            continue
        count += 1
        if count > _MOST:
            raise UnknownInstructionError(f"calls without an end at {call.where()}")
        _replace(kernel, at, callee, f"@call{count}")
    return kernel


def _lists(call: Instruction) -> tuple[list[str], str, list[str]]:
    """Results, name and arguments of `call (results), name, (arguments);`."""
    operands = list(call.operands)
    results = split_operands(operands.pop(0).strip("()")) if operands[0].startswith("(") else []
    name = operands.pop(0)
    arguments = split_operands(operands[0].strip("()")) if operands else []
    return results, name, arguments


def _callee(call: Instruction) -> str:
    return _lists(call)[1]


def _replace(kernel: Kernel, at: int, callee: Kernel, suffix: str) -> None:
    results, _, arguments = _lists(kernel.instructions[at])
    formal = [v.name for v in (*callee.results, *callee.parameters)]
    names = {own: own + suffix for own in (*callee.registers, *callee.variables)}
    names |= dict(zip(formal, [*results, *arguments], strict=True))

    def renamed(text: str) -> str:
        return _NAME.sub(lambda match: names.get(match[0], match[0]), text)

    end = at + len(callee.instructions)
    body = []
    for own in callee.instructions:
        new = replace(
            own,
            operands=[renamed(operand) for operand in own.operands],
            guard=renamed(own.guard) if own.guard else None,
            target=own.target + at if own.target >= 0 else -1,
            targets=tuple(target + at for target in own.targets),
        )
        if own.name == "ret":
            new = replace(new, parts=("bra",), operands=[], target=end)
        body.append(new)
    growth = len(body) - 1
    for other in kernel.instructions:
        if other.target > at:
            other.target += growth
        other.targets = tuple(t + growth if t > at else t for t in other.targets)
    kernel.instructions[at : at + 1] = body
    kernel.registers |= {own + suffix: type_ for own, type_ in callee.registers.items()}
    for name, variable in callee.variables.items():
        kernel.variables[name + suffix] = replace(variable, name=name + suffix)
