"""The body of a function: PTX text -> instructions, registers and variables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import UnknownInstructionError
from .variables import DECLARATION, Variable, split_operands, variable

_STATEMENT = re.compile(
    r"\s*(?:(?P<open>\{)|(?P<close>\})|(?P<location>\.(?:loc|file)\b[^\n]*)"
    r"|(?P<label>[\w$%]+)\s*:(?!:)|(?P<statement>[^;]*);)"
)
_NAME = re.compile(r"[%$\w]+")


@dataclass(slots=True)
class Instruction:
    """One instruction; `parts` is the opcode cut at its dots."""

    text: str
    parts: tuple[str, ...]
    operands: list[str]
    guard: str | None
    negated: bool
    line: int
    source: tuple[str, int] | None
    target: int = -1  # of a branch: the index of the instruction to go on with
    targets: tuple[int, ...] = ()  # of brx.idx

    @property
    def name(self) -> str:
        return self.parts[0]

    @property
    def type(self) -> str:
        return self.parts[-1]

    def where(self) -> str:
        source = f" ({self.source[0]}:{self.source[1]})" if self.source else ""
        return f"PTX line {self.line}: {self.text}{source}"


@dataclass(slots=True)
class Kernel:
    name: str
    parameters: list[Variable]
    results: list[Variable] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)


class Body:
    """Reads one function body, from its opening brace to the one that closes it."""

    def __init__(self, kernel: Kernel, text: str, files: dict[str, str]) -> None:
        self.kernel, self.text, self.files = kernel, text, files
        self.scopes: list[dict[str, str]] = []
        self.labels: dict[str, int] = {}
        self.scope_count = 0
        self.source: tuple[str, int] | None = None
        self.jumps: list[tuple[Instruction, list[str]]] = []
        self.tables: dict[str, list[str]] = {}
        self.line, self.seen = 1, 0

    def line_of(self, position: int) -> int:
        self.line += self.text.count("\n", self.seen, position)
        self.seen = position
        return self.line

    def read(self, start: int) -> int:
        position = start
        while True:
            match = _STATEMENT.match(self.text, position)
            if not match:
                raise UnknownInstructionError(f"line {self.line_of(position)}: no statement")
            position = match.end()
            kind = match.lastgroup
            if kind == "open":
                self.scopes.append({})
                self.scope_count += 1
            elif kind == "close":
                self.scopes.pop()
                if not self.scopes:
                    break
            elif kind == "location":
                self.locate(match["location"])
            elif kind == "label":
                self.labels[self.declare(match["label"])] = len(self.kernel.instructions)
            else:
                self.statement(match["statement"].strip(), match.start("statement"))
        self.link()
        return position

    def locate(self, text: str) -> None:
        match = re.match(r"\.loc\s+(\d+)\s+(\d+)", text)
        if match:
            self.source = (self.files.get(match[1], match[1]), int(match[2]))

    def declare(self, name: str) -> str:
        """Names declared inside of braces are theirs: they get a name that no other has."""
        unique = name if len(self.scopes) < 2 else f"{name}@{self.scope_count}"
        if unique in self.labels:
            unique = f"{name}@{self.scope_count}.{len(self.labels)}"
        self.scopes[-1][name] = unique
        return unique

    def resolve(self, text: str) -> str:
        """The operands of a statement with the names of the scopes it stands in."""
        if len(self.scopes) < 2 or not any(self.scopes[1:]):
            return text

        def unique(match: re.Match[str]) -> str:
            for scope in reversed(self.scopes[1:]):
                if match[0] in scope:
                    return scope[match[0]]
            return match[0]

        return _NAME.sub(unique, text)

    def statement(self, text: str, position: int) -> None:
        if text.startswith(".reg"):
            self.declare_registers(text)
        elif re.match(r"\.(shared|local|param)\b", text):
            self.declare_variable(text + ";")
        elif text.startswith(".branchtargets"):
            label = next(reversed(self.labels))
            self.tables[label] = split_operands(text.removeprefix(".branchtargets"))
        elif text and not text.startswith((".pragma", ".callprototype")):
            self.instruction(text, position)

    def declare_registers(self, text: str) -> None:
        match = re.match(r"\.reg\s+(?:\.v\d\s+)?\.(\w+)\s+(.*)", text, re.DOTALL)
        assert match is not None
        for item in match[2].split(","):
            counted = re.match(r"\s*([%\w$]+)<(\d+)>", item)
            names = (
                [f"{counted[1]}{n}" for n in range(int(counted[2]))] if counted else [item.strip()]
            )
            for name in names:
                self.kernel.registers[self.declare(name)] = match[1]

    def declare_variable(self, text: str) -> None:
        match = DECLARATION.match(text)
        if not match:
            raise UnknownInstructionError(text)
        found = variable(match)
        found.name = self.declare(found.name)
        if found.space == "param":  # of a call; every thread has its own
            found.space = "local"
        self.kernel.variables[found.name] = found

    def instruction(self, text: str, position: int) -> None:
        text = " ".join(text.split())
        line = self.line_of(position)
        match = re.match(r"(?:@(!?)\s*([%\w$]+)\s+)?([\w.:]+)\s*(.*)", text, re.DOTALL)
        if not match:
            raise UnknownInstructionError(f"PTX line {line}: {text}")
        operands = split_operands(match[4])
        guard = self.resolve(match[2]) if match[2] else None
        parts = tuple(part for part in re.split(r"\.", match[3]) if part)
        found = Instruction(text, parts, operands, guard, bool(match[1]), line, self.source)
        self.kernel.instructions.append(found)
        found.operands = [self.resolve(operand) for operand in operands]
        if found.name in ("bra", "brx"):
            self.jumps.append((found, list(self.scopes)))

    def link(self) -> None:
        """Branches get the index they go to; a label may stand after its branch."""
        for instruction, scopes in self.jumps:
            names = instruction.operands[-1:]
            if instruction.name == "brx":
                names = self.tables[self.find(instruction.operands[1], scopes)]
            found = [self.labels[self.find(name, scopes)] for name in names]
            instruction.target, instruction.targets = found[0], tuple(found)

    def find(self, name: str, scopes: list[dict[str, str]]) -> str:
        for scope in reversed(scopes):
            if name in scope:
                return scope[name]
        if name in self.labels:
            return name
        raise UnknownInstructionError(f"label {name} is nowhere")
