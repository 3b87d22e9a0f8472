"""PTX text -> kernels: instructions, registers, parameters and the symbols of a module."""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass, field

from .errors import UnknownInstructionError

TYPE_BYTES = {"pred": 1, "b128": 16} | {
    f"{kind}{bits}": bits // 8 for kind in "bsuf" for bits in (8, 16, 32, 64)
}
_STATEMENT = re.compile(
    r"\s*(?:(?P<open>\{)|(?P<close>\})|(?P<location>\.(?:loc|file)\b[^\n]*)"
    r"|(?P<label>[\w$%]+)\s*:(?!:)|(?P<statement>[^;]*);)"
)
_NAME = re.compile(r"[%$\w]+")
_OPENING = re.compile(r"\.(entry|func)\s+(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([^)]*)\))?")
_VARIABLE = re.compile(
    r"^\s*((?:\.(?:extern|visible|weak|common)\s+)*)\.(global|const|shared|local)"
    r"\s+(?:\.align\s+(\d+)\s+)?(?:\.attribute\([^)]*\)\s*)?\.(\w+)\s+([\w$]+)((?:\[\d*\])*)"
    r"(?:\s*=\s*(\{[^}]*\}|[^;]+))?\s*;",
    re.MULTILINE,
)


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
class Variable:
    """A named piece of memory; `size` is None for the dynamic shared memory."""

    name: str
    space: str
    size: int | None
    align: int
    content: bytes = b""


@dataclass(slots=True)
class Kernel:
    name: str
    parameters: list[Variable]
    instructions: list[Instruction] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)


def split_operands(text: str) -> list[str]:
    """The operands of an instruction; braces and brackets keep their commas."""
    found, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and not depth:
            found.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*found, last] if last else found


def _without_comments(text: str) -> str:
    """The same lines without comments, so that line numbers stay."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def _initial_bytes(kind: str, value: str | None) -> bytes:
    if not value:
        return b""
    items = split_operands(value.strip().strip("{}"))
    size = TYPE_BYTES[kind]
    out = b""
    for item in items:
        if item.lower().startswith("0f") or item.lower().startswith("0d"):
            out += bytes.fromhex(item[2:])[::-1]
        elif re.match(r"-?[\d]", item):
            out += (int(item.rstrip("U"), 0) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        elif kind in ("f32", "f64"):
            out += struct.pack("<f" if size == 4 else "<d", float(item))
        else:
            raise UnknownInstructionError(f"a variable that begins with the address {item}")
    return out


def _variable(match: re.Match[str]) -> Variable:
    linkage, space, align, kind, name, extents, value = match.groups()
    size: int | None = TYPE_BYTES[kind]
    for extent in re.findall(r"\[(\d*)\]", extents):
        size = None if extent == "" else (size or 0) * int(extent)
    content = _initial_bytes(kind, value)
    if size is None and content:
        size = len(content)
    del linkage
    return Variable(name, space, size, int(align or TYPE_BYTES[kind]), content)


def _parameters(text: str | None) -> list[Variable]:
    found = []
    for item in split_operands(text or ""):
        match = re.match(
            r"\.(?:param|reg)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(.*?)([\w$%]+)\s*(?:\[(\d+)\])?$",
            item,
            re.DOTALL,
        )
        if not match:
            raise UnknownInstructionError(f"parameter {item}")
        size = int(match[5]) if match[5] else TYPE_BYTES[match[2]]
        found.append(Variable(match[4], "param", size, int(match[1] or size)))
    return found


class _Body:
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
        match = _VARIABLE.match(text)
        if not match:
            raise UnknownInstructionError(text)
        variable = _variable(match)
        variable.name = self.declare(variable.name)
        self.kernel.variables[variable.name] = variable

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


@functools.lru_cache(maxsize=64)
def parse(text: str) -> dict[str, Kernel]:
    """The kernels (.entry) of a module by name."""
    text = _without_comments(text)
    files = {
        number: path.rsplit("/", 1)[-1]
        for number, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.MULTILINE)
    }
    kernels, inside = {}, []
    for match in _OPENING.finditer(text):
        brace = text.find("{", match.end())
        end = text.find(";", match.end())
        if brace < 0 or 0 <= end < brace:
            continue  # a declaration
        kernel = Kernel(match[3], _parameters(match[4]))
        inside.append((match.start(), _Body(kernel, text, files).read(brace)))
        if match[1] == "entry":
            kernels[kernel.name] = kernel
    module = {
        match[5]: _variable(match)
        for match in _VARIABLE.finditer(text)
        if not any(start < match.start() < stop for start, stop in inside)
    }
    for kernel in kernels.values():
        kernel.variables = {**module, **kernel.variables}
    return kernels
