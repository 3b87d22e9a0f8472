"""What a command writes: tables and progress through rich, JSON to a file or standard output."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fused_attention.arguments import STDOUT

OnStep = Callable[[str, float], None]

SECONDS_BETWEEN_LINES = 5.0
EXTRA = 'pip install "fused-attention[cli]"'
EXTRA_PACKAGES = ("matplotlib", "numpy", "rich", "sacrebleu", "safetensors", "tokenizers")


class UsageError(Exception):
    """The arguments ask for something that cannot be; the message is one sentence."""


class MissingExtraError(Exception):
    """A package of the extra `cli` is not installed; the message says how to get it."""


def require(module: str) -> Any:
    """Import a module of the extra `cli`.

    Raises:
        MissingExtraError: its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None


def missing_extra(error: ModuleNotFoundError) -> Exception:
    """What to raise for a failed import: of a package of the extra `cli` one sentence."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_PACKAGES:
        return error
    return MissingExtraError(f"this needs the Python package {package}, which {EXTRA} installs")


class Output:
    """Where a command's words go: to standard output, unless JSON goes there."""

    def __init__(self, json_path: Path | None) -> None:
        self.json_path = json_path
        self.quiet = json_path == STDOUT
        self.after_blank = True  # whether a heading needs no empty line above it

    def console(self, stderr: bool = False) -> Any:
        width = None if sys.stdout.isatty() else 120  # a pipe or a log has no width of its own
        return require("rich.console").Console(stderr=stderr, highlight=False, width=width)

    def heading(self, text: str) -> None:
        if not self.quiet:
            above = "" if self.after_blank else "\n"
            self.console().print(f"{above}[bold]{_escape(text)}[/bold]")
            self.after_blank = False

    def line(self, text: str) -> None:
        if not self.quiet:
            print(text)
            self.after_blank = False

    @property
    def width(self) -> int:
        """Columns of the terminal, or of what stands in for one."""
        return int(self.console().width)

    def table(
        self,
        headers: Sequence[str],
        rows: Iterable[Sequence[str]],
        left: int = 1,
        style: Callable[[str], str | None] = lambda cell: None,
    ) -> None:
        """A table whose first `left` columns are text; `style` may colour a cell by its text.

        Headers of numbers stand above each other word by word, which keeps columns narrow.
        """
        if self.quiet:
            return
        table = require("rich.table").Table(
            box=require("rich.box").SIMPLE_HEAD,
            padding=(0, 0, 0, 1),
            show_edge=False,
            show_header=any(headers),
        )
        for i, header in enumerate(headers):
            if i < left:
                # Only the last of the text columns may break its lines.
                no_wrap = i == 0 or i < left - 1
                table.add_column(_escape(header), overflow="fold", no_wrap=no_wrap)
            else:
                words = _escape(header).replace(" ", "\n")
                table.add_column(words, justify="right", no_wrap=True)
        text = require("rich.text").Text
        for row in rows:
            table.add_row(*(text(cell, style=style(cell) or "") for cell in row))
        console = self.console()
        console.print(table)
        console.print()
        self.after_blank = True

    def json(self, values: Any) -> None:
        """Write the result as JSON where --json says; nothing without --json."""
        if self.json_path is None:
            return
        text = json.dumps(values, indent=1) + "\n"
        if self.json_path == STDOUT:
            sys.stdout.write(text)
            return
        try:
            self.json_path.write_text(text)
        except OSError as error:
            message = f"argument --json: cannot write {self.json_path}: {error.strerror}"
            raise UsageError(message) from None

    @contextmanager
    def progress(self, total: float) -> Iterator[OnStep]:
        """Tell on standard error how far the command is: a bar, or now and then a line in a log.

        Yields a function to call with the name and the weight of each step as it begins; the
        weights add up to `total`.
        """
        if self.quiet:
            yield lambda step, weight: None
        elif not sys.stderr.isatty():
            yield _Lines(total)
        else:
            with self._bar() as bar:
                yield _BarSteps(bar, total)

    def _bar(self) -> Any:
        progress = require("rich.progress")
        columns = (
            progress.BarColumn(bar_width=30),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.description}"),
        )
        return progress.Progress(*columns, console=self.console(stderr=True), transient=True)


class _Lines:
    """Progress for a log: a line when the last one is some seconds old."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.last = total, 0.0, time.monotonic()

    def __call__(self, step: str, weight: float) -> None:
        if time.monotonic() - self.last > SECONDS_BETWEEN_LINES:
            share = 100 * self.done / self.total
            print(f"[{share:3.0f} %] {step}", file=sys.stderr, flush=True)
            self.last = time.monotonic()
        self.done += weight


class _BarSteps:
    """Progress for a terminal: rich's bar, which a step moves when the next one begins."""

    def __init__(self, bar: Any, total: float) -> None:
        self.bar, self.done = bar, 0.0
        self.task = bar.add_task("", total=total)

    def __call__(self, step: str, weight: float) -> None:
        self.bar.update(self.task, completed=self.done, description=_escape(step))
        self.done += weight


def _escape(text: str) -> str:
    return str(require("rich.markup").escape(text))
