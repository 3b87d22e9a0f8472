"""The command `fused-attention`: info, explain, check, bench and demo."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own) and return its exit code."""
    from fused_attention.cli.program import run  # imports every command, which most imports spare

    return run(arguments)
