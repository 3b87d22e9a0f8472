"""What the drop-in doors report while a test runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fused_attention import log


class _Collector(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def door_reports() -> Iterator[list[str]]:
    """A list that gets the reports of the block, "file:line: door -> what served it"."""
    lines: list[str] = []
    collector = _Collector(lines)
    log.LOGGER.addHandler(collector)
    level, propagate = log.LOGGER.level, log.LOGGER.propagate
    log.LOGGER.propagate = False
    log.enable()
    try:
        yield lines
    finally:
        log.enable(False)
        log.LOGGER.removeHandler(collector)
        log.LOGGER.setLevel(level)
        log.LOGGER.propagate = propagate
