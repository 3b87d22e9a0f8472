"""Pages with code in them: their Python blocks, and what these compute."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# A block of Python and, where one follows at once, the block of what it prints.
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n\n^```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


class CodeBlock(NamedTuple):
    """One Python block of a page."""

    above: int  # lines of the page before its code
    code: str
    output: str | None  # what the page says that it prints; None where it says nothing


def code_blocks(page: Path) -> Iterator[CodeBlock]:
    """The Python blocks of a page, from top to bottom."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        above = text.count("\n", 0, match.start("code"))
        yield CodeBlock(above, match["code"], match["output"])


def run_page(page: Path) -> tuple[dict[str, Any], list[tuple[CodeBlock, str]]]:
    """Run a page from top to bottom: the names it leaves, and what each block printed."""
    names: dict[str, Any] = {"__name__": page.stem}
    printed = []
    for block in code_blocks(page):
        # The blank lines make a traceback point into the page.
        code = compile("\n" * block.above + block.code, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, names)
        printed.append((block, output.getvalue()))
    return names, printed
