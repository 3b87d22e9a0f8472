"""The parser and the argument types that several commands share."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
STDOUT = Path("-")

Subparsers = Any  # argparse's own type for it is private


class Parser(argparse.ArgumentParser):
    """Wrong arguments give one sentence and exit code 2; options are never abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **options, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help tells more)\n")


def add_command(
    commands: Subparsers, name: str, summary: str, example: str, run: Callable[[Any], int]
) -> Parser:
    """A command's parser with --json; `summary` is its help, `example` a line to type."""
    parser: Parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"Example: {example}",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        type=output_file,
        metavar="FILE",
        help="write the result as JSON to FILE, or to standard output without FILE or with -",
    )
    return parser


def output_file(text: str) -> Path:
    """A file that can be written, or "-" for standard output."""
    path = Path(text)
    if text == "-":
        return STDOUT
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must name a file, {text!r} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must lie in a folder, {str(path.parent)!r} is none")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"must be writable, {text!r} is not")
    return path


def output_folder(text: str) -> Path:
    """A folder that exists or can be made; it is made when something is written."""
    path = Path(text)
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, {str(nearest)!r} is a file")
    if not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(f"must be writable, {str(nearest)!r} is not")
    return path


def positive_int(text: str) -> int:
    value = _int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def non_negative(text: str) -> float:
    """A finite number from 0 on."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number from 0 on, got {text!r}")
    return value


def positive_ints(text: str) -> tuple[int, ...]:
    """Comma-separated positive integers."""
    return tuple(positive_int(part) for part in text.split(","))


def numbers(text: str) -> tuple[int, ...]:
    """Comma-separated integers from 0 on."""
    values = tuple(_int(part) for part in text.split(","))
    for value in values:
        if value < 0:
            raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return values


def shape(text: str) -> tuple[int, int, int, int]:
    """B,Hq,Lq,D."""
    parts = text.split(",")
    if len(parts) != 4:
        raise argparse.ArgumentTypeError(f"must be four numbers B,Hq,Lq,D, got {text!r}")
    batch, heads, length, dim = (_int(part) for part in parts)
    for name, value, least in (("B", batch, 0), ("Hq", heads, 1), ("Lq", length, 0), ("D", dim, 1)):
        if value < least:
            raise argparse.ArgumentTypeError(f"{name} must be at least {least}, got {value}")
    return batch, heads, length, dim


def window(text: str) -> tuple[int | None, int | None]:
    """LEFT,RIGHT, each a count of keys or "none" for no limit."""
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"must be two numbers LEFT,RIGHT, got {text!r}")
    left, right = (None if part.strip().lower() == "none" else _int(part) for part in parts)
    return left, right


def dtypes(text: str) -> tuple[str, ...]:
    """Comma-separated names from DTYPES."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in DTYPES:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(DTYPES)}, got {name!r}")
    return tuple(dict.fromkeys(names))


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
