"""The command line that these programs share, and where their reports go."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fused_attention.arguments import Parser, non_negative, output_file, output_folder, positive_int
from fused_attention.files import write_text


def report_file(text: str) -> Path:
    """A file that can be written, in a folder that exists or can be made."""
    path = Path(text)
    if text == "-":
        raise argparse.ArgumentTypeError("must name a file, got '-'")
    if path.parent.is_dir():
        return output_file(text)
    output_folder(str(path.parent))
    return path


def parser_of(
    program: str, summary: str, budget: float | None = None, unit: str = "", report: bool = True
) -> Parser:
    """A parser with --threads, --seconds if there is a budget for each unit, and --json."""
    parser = Parser(prog=f"python -m fused_attention.benchmarks.{program}", description=summary)
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of torch, default as many as it uses"
    )
    if report:
        parser.add_argument("--json", type=report_file, metavar="FILE", help="store the report")
    if budget is not None:
        parser.add_argument(
            "--seconds", type=non_negative, default=budget, help=f"{unit}, default %(default)s"
        )
    return parser


def parse(parser: Parser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; torch has that many threads from now on, and `threads` is their number."""
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    options.threads = torch.get_num_threads()
    return options


def store(report: Mapping[str, Any], path: Path | None, indent: int | None = 1) -> None:
    """The report as JSON, completely or not at all; nowhere without a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(report, indent=indent) + "\n")
