"""Files that are there completely or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial"


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file near `path`, bring it to the disk, then give it its name.

    A reader sees the old file or the new one; so does whoever comes after a crash. The file is
    written in a folder of its own, because libraries put temporary files beside it.
    """
    folder = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    folder.mkdir(exist_ok=True)
    try:
        partial = folder / path.name
        write(partial)
        _to_disk(partial)
        os.replace(partial, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_file` for a short text."""
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(f".*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
