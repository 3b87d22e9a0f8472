"""Files that are there completely or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial"


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, bring it to the disk, then give it its name.

    A reader sees the old file or the new one; so does whoever comes after a crash.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        write(partial)
        _to_disk(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_file` for a short text."""
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
