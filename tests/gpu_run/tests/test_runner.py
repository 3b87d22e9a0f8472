"""Commands with a time limit: real processes, short ones."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from gpu_run import runner
from gpu_run.runner import Runner


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "GRACE_S", 0.3)
    monkeypatch.setattr(runner, "POLL_S", 0.02)


def run(tmp_path: Path, code: str, limit_s: float = 20.0, **options):
    log = tmp_path / "log"
    command = [sys.executable, "-S", "-c", code]
    return Runner(60.0).run(command, log, limit_s, os.environ, tmp_path, **options), log


def test_output_and_exit_status(tmp_path):
    outcome, log = run(tmp_path, "import sys; print('said'); sys.exit('wrong')")
    assert (outcome.code, outcome.ending, outcome.ok) == (1, "exit", False)
    assert log.read_text().startswith(f"$ {sys.executable}")
    assert "said" in log.read_text() and "wrong" in log.read_text()
    outcome, _ = run(tmp_path, "pass")
    assert outcome.ok
    assert "said" in log.read_text(), "logs grow"


def test_a_program_that_does_not_exist_is_an_outcome(tmp_path):
    outcome = Runner(9.0).run(["/no/such/program"], tmp_path / "log", 5.0, {}, tmp_path)
    assert outcome.code == 127
    assert "No such file" in (tmp_path / "log").read_text()


def test_the_limit_holds_for_children_and_for_who_ignores_sigterm(tmp_path):
    child = "import signal, time; signal.signal(15, signal.SIG_IGN); "
    child += "open('alive', 'w').write(str(__import__('os').getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
    begin = time.monotonic()
    outcome, _ = run(tmp_path, code, limit_s=2.0)
    assert outcome.ending == "time"
    assert time.monotonic() - begin < 3.5
    pid = int((tmp_path / "alive").read_text())
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline and _running(pid):
        time.sleep(0.05)
    assert not _running(pid)


def test_silence_is_a_hang_but_signs_of_life_are_not(tmp_path):
    life = tmp_path / "life"
    code = "import time\nfor _ in range(5):\n open('life', 'a').write('x'); time.sleep(0.3)"
    outcome, _ = run(tmp_path, code, sign_of_life=life, silence_s=1.5)
    assert outcome.ok
    code = "import time; time.sleep(60)"
    outcome, _ = run(tmp_path, code, sign_of_life=life, silence_s=0.5)
    assert outcome.ending == "hung" and outcome.seconds < 5.0


def _running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
