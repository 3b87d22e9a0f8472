"""The log says once per place and problem what served a call, and costs nothing when off."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from door_reports import door_reports
from torch import Tensor

from fused_attention import attention, explain, log

QUERY = torch.zeros(1, 2, 3, 4)
PROBLEM = explain(QUERY, QUERY, QUERY).problem


def place(line: str) -> tuple[str, int]:
    path, number, _ = line.split(":", 2)
    return Path(path).name, int(number)


def test_one_line_per_place_and_problem() -> None:
    with door_reports() as lines:
        for _ in range(3):
            log.served("a door", PROBLEM, "cpu")
        log.served("a door", PROBLEM, "cpu")
        log.served("a door", PROBLEM._replace(len_q=9), "cpu")
    assert len(lines) == 3
    first, second, third = map(place, lines)
    assert first[0] == second[0] == Path(__file__).name
    assert second[1] == first[1] + 1 and third[1] == first[1] + 2
    assert lines[0].endswith(f": a door -> cpu: {PROBLEM}")


def test_reason_why_it_is_not_ours() -> None:
    with door_reports() as lines:
        log.served("a door", None, "the moon is full")
    assert lines[0].endswith(": a door -> torch's own, because the moon is full")


def test_problem_of_a_call() -> None:
    with door_reports() as lines:
        log.attended("a door", QUERY, QUERY, QUERY, causal=True)
    assert ": a door -> cpu: float32 on cpu, B=1 H=2 Lq=3 Lk=3 D=4, band causal" in lines[0]


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("reported")

    monkeypatch.setattr(log, "_report", fail)
    assert not log.enabled
    log.served("a door", None, "no reason")
    log.attended("a door")  # the arguments are not even looked at


def test_enabling_again_starts_anew() -> None:
    for _ in range(2):
        with door_reports() as lines:
            log.served("a door", None, "no reason")
        assert len(lines) == 1


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_code_reports_while_it_is_traced(dynamic: bool) -> None:
    def function(x: Tensor) -> Tensor:
        log.attended("a door", x, x, x)
        log.served("another", None, "no reason")
        return attention(x, x, x)

    line = function.__code__.co_firstlineno
    torch.compiler.reset()
    with door_reports() as lines:
        fast = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="eager")
        for length in (3, 4, 5):
            fast(torch.zeros(2, 2, length, 4))
    torch.compiler.reset()
    assert [place(report) for report in lines] == [
        (Path(__file__).name, line + 1),
        (Path(__file__).name, line + 2),
    ]
    assert lines[0].endswith("a door -> cpu: in a compiled graph")
    assert lines[1].endswith("another -> torch's own, because no reason")


def test_uses_the_logging_that_is_configured(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fused_attention"):
        log.enable()
        log.served("a door", None, "no reason")
        log.enable(False)
    assert [record.name for record in caplog.records] == ["fused_attention"]


@pytest.mark.parametrize("value", ["1", "0"])
def test_environment_variable(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_ATTENTION_LOG", value)
    code = "from fused_attention import log; log.served('a door', None, 'no reason')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = "fused_attention: <string>:1: a door -> torch's own, because no reason\n"
    assert ran.stderr == (expected if value == "1" else "")
