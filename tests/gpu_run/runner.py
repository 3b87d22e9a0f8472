"""Runs a command with a time limit, its output in a log; kills it with all that it has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

POLL_S = 0.1
GRACE_S = 3.0  # between asking a process to end and making it


class Outcome(NamedTuple):
    """How a command ended; `ending` is "exit", "time" (its limit) or "hung" (no sign of life)."""

    code: int
    seconds: float
    ending: str = "exit"

    @property
    def ok(self) -> bool:
        return self.ending == "exit" and self.code == 0


class Runner:
    """Runs commands and knows how much of the whole time is left.

    Args:
        seconds: for everything, from now on.
        clock: in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock()
        self.seconds = seconds

    def elapsed(self) -> float:
        return self._clock() - self._begin

    def left(self) -> float:
        return self.seconds - self.elapsed()

    def run(
        self,
        command: Sequence[str],
        log: Path,
        limit_s: float,
        environment: Mapping[str, str],
        cwd: Path,
        sign_of_life: Path | None = None,
        silence_s: float = 90.0,
    ) -> Outcome:
        """Run a command; output is appended to `log`.

        Args:
            limit_s: after this time it is killed, GRACE_S of it included.
            sign_of_life: a file that the command writes to; `silence_s` without that is a hang.
        """
        begin = self._clock()
        with log.open("ab") as stream:
            stream.write(f"$ {' '.join(command)}\n".encode())
            stream.flush()
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    cwd=cwd,
                    start_new_session=True,
                )
            except OSError as error:
                stream.write(f"{error}\n".encode())
                return Outcome(127, self._clock() - begin)
            ending = self._wait(process, begin, limit_s - GRACE_S, sign_of_life, silence_s)
            if ending != "exit":
                _kill(process)
                stream.write(f"killed: {ending}\n".encode())
        return Outcome(process.returncode, self._clock() - begin, ending)

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        begin: float,
        limit_s: float,
        sign_of_life: Path | None,
        silence_s: float,
    ) -> str:
        seen, heard = -1, begin
        while process.poll() is None:
            now = self._clock()
            if now - begin > limit_s:
                return "time"
            if sign_of_life is not None:
                size = sign_of_life.stat().st_size if sign_of_life.exists() else -1
                if size != seen:
                    seen, heard = size, now
                if now - heard > silence_s:
                    return "hung"
            time.sleep(POLL_S)
        return "exit"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children, which are in a process group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    process.wait()
