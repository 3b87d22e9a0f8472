"""What the tests of the command line share: running it, and a benchmark that takes no time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from fused_attention import Band
from fused_attention.backends import triton
from fused_attention.benchmarks import cases, limits
from fused_attention.benchmarks.cases import MemoryLadder, square
from fused_attention.cli import main


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What users see: the tests have switched Triton's interpreter on, nobody else has."""
    monkeypatch.setattr(triton, "_interpreted", lambda: False)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `fused-attention` with these arguments in this process."""

    def run(*arguments: object) -> Outcome:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's way out
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def tiny_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small cases and no memory ladder in place of the demo set."""
    small = (
        square(1, 2, 32, 16, series="full"),
        square(1, 2, 48, 16, series="full"),
        square(1, 2, 32, 16, band=Band.sliding(5), dtype="bf16", backward=False),
    )
    monkeypatch.setitem(cases.CASE_SETS, "demo", small)
    monkeypatch.setitem(cases.MEMORY_LADDERS, "demo", MemoryLadder((), peers_up_to=0))
    monkeypatch.setattr(limits, "MATRIX_SIZE", 32)
    monkeypatch.setattr(limits, "BLOCK_FLOATS", 1024)
