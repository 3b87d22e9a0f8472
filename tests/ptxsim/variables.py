"""Declarations of memory: variables of a module or a function, and parameters."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from .errors import UnknownInstructionError

TYPE_BYTES = {"pred": 1, "b128": 16} | {
    f"{kind}{bits}": bits // 8 for kind in "bsuf" for bits in (8, 16, 32, 64)
}
DECLARATION = re.compile(
    r"^\s*(?:\.(?:extern|visible|weak|common)\s+)*\.(global|const|shared|local|param)"
    r"\s+(?:\.align\s+(\d+)\s+)?(?:\.attribute\([^)]*\)\s*)?\.(\w+)\s+([\w$]+)((?:\[\d*\])*)"
    r"(?:\s*=\s*(\{[^}]*\}|[^;]+))?\s*;",
    re.MULTILINE,
)


@dataclass(slots=True)
class Variable:
    """A named piece of memory; `size` is None for the dynamic shared memory."""

    name: str
    space: str
    size: int | None
    align: int
    content: bytes = b""


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


def variable(match: re.Match[str]) -> Variable:
    space, align, kind, name, extents, value = match.groups()
    size: int | None = TYPE_BYTES[kind]
    for extent in re.findall(r"\[(\d*)\]", extents):
        size = None if extent == "" else (size or 0) * int(extent)
    content = _initial_bytes(kind, value)
    if size is None and content:
        size = len(content)
    return Variable(name, space, size, int(align or TYPE_BYTES[kind]), content)


def parameters(text: str | None) -> list[Variable]:
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
