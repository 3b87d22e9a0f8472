"""The log of a run: one JSON object per line, in step with its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fused_attention.files import write_text

NAME = "log.jsonl"
Entry = dict[str, Any]


class History:
    """Entries with a "step", in memory and, given a folder, in its log.jsonl."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = None if folder is None else folder / NAME
        self.entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def return_to(self, step: int) -> None:
        """Read the log and forget what lies behind `step`: a resumed run writes it again."""
        if self.path is None:
            self.entries = [entry for entry in self.entries if entry["step"] <= step]
            return
        read = read_log(self.path) if self.path.exists() else []
        self.entries = [entry for entry in read if entry["step"] <= step]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in self.entries))


def read_log(path: Path) -> list[Entry]:
    """The entries of a log; a last line that was cut off is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            entries.append(json.loads(line))
    return entries
