"""The support matrix: which backend supports which feature in which dtype.

python -m fused_attention.cli.matrix                    prints it as Markdown
python -m fused_attention.cli.matrix --write README.md  rewrites README's matrix
python -m fused_attention.cli.matrix --check README.md  fails when README says otherwise
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fused_attention.benchmarks.markdown import block_command, markdown_table
from fused_attention.cli.output import Output
from fused_attention.support import DTYPES, SupportMatrix, support_matrix

README_MARKER = "support matrix"
DEVICES = ("cpu",)  # named, so that the matrix does not depend on the machine that prints it
LEGEND = f"all: {', '.join(DTYPES)}"


def support() -> SupportMatrix:
    return support_matrix(DEVICES)


def matrix_table(matrix: SupportMatrix) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of cells: a row for each feature, a column for each backend and device."""
    places = dict.fromkeys((e.backend, e.device_type) for e in matrix if e.supported)
    rows = []
    for feature in dict.fromkeys(entry.feature for entry in matrix):
        cells = [
            [
                entry.dtype
                for entry in matrix
                if entry.supported and (entry.feature, entry.backend, entry.device_type) == key
            ]
            for key in ((feature, *place) for place in places)
        ]
        rows.append([feature, *map(_cell, cells)])
    names = (name if name == device else f"{name} on {device}" for name, device in places)
    return ["Feature", *names], rows


def print_matrix(output: Output, matrix: SupportMatrix) -> None:
    headers, rows = matrix_table(matrix)
    output.heading("What each backend supports")
    output.table(headers, rows, left=len(headers))
    output.line(LEGEND)


def matrix_markdown() -> str:
    headers, rows = matrix_table(support())
    return f"{markdown_table(headers, rows, left=len(headers))}\n\n{LEGEND}"


def _cell(dtypes: list[str]) -> str:
    if len(dtypes) == len(DTYPES):
        return "all"
    return " ".join(dtypes) or "—"


def main(arguments: Sequence[str] | None = None) -> int:
    code: int = block_command(
        arguments,
        program="python -m fused_attention.cli.matrix",
        description="Print the support matrix, or keep README's equal to it.",
        marker=README_MARKER,
        make_block=matrix_markdown,
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
