"""A PTX text: its kernels, with the functions that they call put in place of the calls."""

from __future__ import annotations

import functools
import re

from .calls import expand
from .errors import UnknownInstructionError
from .parse import Body, Kernel
from .variables import DECLARATION, parameters, variable

_OPENING = re.compile(r"\.(entry|func)\s+(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([^)]*)\))?")
_BRACE = re.compile(r"[{}]")


def _without_comments(text: str) -> str:
    """The same lines without comments, so that line numbers stay."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def _end_of_body(text: str, brace: int) -> int:
    """Position behind the brace that closes the one at `brace`."""
    depth = 0
    for match in _BRACE.finditer(text, brace):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return match.end()
    raise UnknownInstructionError("a function body without an end")


class Module:
    """A PTX text: its kernels, each read when it is asked for."""

    def __init__(self, text: str) -> None:
        self.text = _without_comments(text)
        files = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', self.text, re.MULTILINE)
        self.files = {number: path.rsplit("/", 1)[-1] for number, path in files}
        self.openings: dict[str, tuple[re.Match[str], int]] = {}
        self.functions: dict[str, tuple[re.Match[str], int]] = {}
        outside, position = [], 0
        for match in _OPENING.finditer(self.text):
            brace = self.text.find("{", match.end())
            semicolon = self.text.find(";", match.end())
            if brace < 0 or 0 <= semicolon < brace or match.start() < position:
                continue  # a declaration
            outside.append(self.text[position : match.start()])
            position = _end_of_body(self.text, brace)
            found = self.openings if match[1] == "entry" else self.functions
            found[match[3]] = match, brace
        outside.append(self.text[position:])
        variables = (variable(m) for part in outside for m in DECLARATION.finditer(part))
        self.variables = {variable.name: variable for variable in variables}

    def kernel(self, name: str) -> Kernel:
        """A kernel without calls; reads its body."""
        kernel = expand(self.read(*self.openings[name]), self.function)
        kernel.variables = {**self.variables, **kernel.variables}
        return kernel

    def function(self, name: str) -> Kernel | None:
        """A function by name; None if it has no body here."""
        return self.read(*self.functions[name]) if name in self.functions else None

    def read(self, match: re.Match[str], brace: int) -> Kernel:
        kernel = Kernel(match[3], parameters(match[4]), parameters(match[2]))
        Body(kernel, self.text, self.files).read(brace)
        return kernel


@functools.lru_cache(maxsize=32)
def parse(text: str) -> Module:
    """The module of a PTX text."""
    return Module(text)
