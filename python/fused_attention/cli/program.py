"""Parses the command line and runs one of the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fused_attention import __version__
from fused_attention.arguments import Parser
from fused_attention.cli import (
    align,
    attention_map,
    bench,
    check,
    demo,
    embed,
    explain,
    fetch,
    generate,
    info,
    train,
    translate,
)
from fused_attention.cli.output import MissingExtraError, UsageError, missing_extra

PROGRAM = "fused-attention"
COMMANDS = (
    *(info, explain, check, bench, demo),
    *(fetch, train, generate, embed, translate, attention_map, align),
)


def build_parser() -> Parser:
    """The parser of the whole command line; each command's module adds its own part."""
    parser = Parser(
        prog=PROGRAM,
        description="Fused attention kernels: what this machine runs, how right and how fast.",
        epilog="Example: fused-attention demo. Every command explains itself with --help.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", title="commands")
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: a check failed, or a package is missing. 2: wrong arguments. 130: interrupted.
    """
    parser = build_parser()
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        names = ", ".join(module.__name__.rpartition(".")[2] for module in COMMANDS)
        parser.error(f"choose one of the commands {names}")
    try:
        code: int = chosen.run(chosen)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(chosen.command, error, 2)
    except MissingExtraError as error:
        return _fail(chosen.command, error, 1)
    except ModuleNotFoundError as error:
        found = missing_extra(error)
        if found is error:
            raise
        return _fail(chosen.command, found, 1)
    except KeyboardInterrupt:
        return _fail(chosen.command, "interrupted", 130)
    except BrokenPipeError:
        # The reader (head, less) has left. Python would complain once more when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _fail(command: str, message: object, code: int) -> int:
    print(f"{PROGRAM} {command}: {message}", file=sys.stderr)
    return code
