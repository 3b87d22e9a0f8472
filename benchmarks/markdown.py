"""Tables in Markdown, and the blocks of README.md that a command keeps up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 2) -> str:
    """A GitHub table whose first `left` columns hold text and the others numbers."""
    rule = ["---" if i < left else "---:" for i in range(len(headers))]
    lines = [headers, rule, *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def replace_block(text: str, marker: str, block: str) -> str:
    """Put `block` between `<!-- begin MARKER -->` and `<!-- end MARKER -->` of a text.

    Raises ValueError unless each of the two lines stands there once, in this order.
    """
    begin, end = f"<!-- begin {marker} -->\n", f"<!-- end {marker} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"text: must hold one '{begin.strip()}' and one '{end}' after it")
    head, rest = text.split(begin)
    return f"{head}{begin}{block}\n{end}{rest.split(end)[1]}"


def block_command(
    arguments: Sequence[str] | None,
    *,
    program: str,
    description: str,
    marker: str,
    make_block: Callable[[], str],
) -> int:
    """A command line that prints a block, writes it into a file or checks it there."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", type=Path, metavar="FILE", help="rewrite the block of FILE")
    action.add_argument("--check", type=Path, metavar="FILE", help="fail if FILE is out of date")
    chosen = parser.parse_args(arguments)
    block = make_block()
    path = chosen.write or chosen.check
    if path is None:
        print(block)
        return 0
    text = path.read_text()
    wanted = replace_block(text, marker, block)
    if chosen.write is not None:
        path.write_text(wanted)
    elif wanted != text:
        print(f"{path}: block '{marker}' is out of date (see make readme)", file=sys.stderr)
        return 1
    return 0
