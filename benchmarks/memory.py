"""Peak memory of one call, measured in a fresh process on Linux.

The kernel keeps the peak resident size of a process (VmHWM) and lets it be reset
(/proc/self/clear_refs, see proc(5)). The process makes the inputs, runs a small call so that
thread pools and libraries are set up, resets the peak, runs the call and reads the peak.
Run as a module it reads JSON jobs from stdin, one a line, and forks a process for each.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cases import DTYPES, Case
from .contenders import Contender, contender

MIB = 2**20
RESET_PEAK = "5"  # what /proc/self/clear_refs wants to hear
WARM_UP_LENGTH = 64


@dataclass(frozen=True)
class MemoryResult:
    """Bytes of one forward call, or of forward and backward together for a case with backward."""

    contender: str
    case: Case
    peak_bytes: int | None  # above the process with its inputs; None: not measured
    input_bytes: int
    output_bytes: int
    reason: str | None = None  # why peak_bytes is None

    @property
    def total_bytes(self) -> int | None:
        """Inputs plus everything that the call had at its peak, its outputs included."""
        return None if self.peak_bytes is None else self.input_bytes + self.peak_bytes

    @property
    def ratio(self) -> float | None:
        """Total over inputs and outputs, the least that any implementation needs."""
        total = self.total_bytes
        return None if total is None else total / (self.input_bytes + self.output_bytes)

    def as_dict(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**values, "case": self.case.as_dict()}

    @classmethod
    def unmeasured(cls, name: str, case: Case, reason: str | None = None) -> MemoryResult:
        inputs, outputs = io_bytes(case)
        return cls(name, case, None, inputs, outputs, reason)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MemoryResult:
        return cls(**{**values, "case": Case.from_dict(values["case"])})


def measure(jobs: Iterable[tuple[str, Case]], threads: int) -> Generator[MemoryResult, None, None]:
    """Measure (contender name, case) jobs, each in a process of its own; yields as they end."""
    command = [sys.executable, "-m", f"{__package__}.memory", str(threads)]
    jobs = list(jobs)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin is not None and run.stdout is not None  # both are pipes
        for name, case in jobs:
            try:
                print(json.dumps({"contender": name, "case": case.as_dict()}), file=run.stdin)
                run.stdin.flush()
                line = run.stdout.readline()
            except BrokenPipeError:
                line = ""
            if line:
                yield MemoryResult.from_dict(json.loads(line))
            else:
                yield MemoryResult.unmeasured(name, case, "the measuring process ended early")


def measure_here(name: str, case: Case) -> MemoryResult:
    """Measure in this process, whose heap should be as good as new."""
    candidate = contender(name)
    _call(candidate, dataclasses.replace(case, len_q=WARM_UP_LENGTH, len_k=WARM_UP_LENGTH))()
    peak, reason = peak_bytes(_call(candidate, case))
    return dataclasses.replace(MemoryResult.unmeasured(name, case, reason), peak_bytes=peak)


def peak_bytes(call: Callable[[], object]) -> tuple[int | None, str | None]:
    """How far a call raises this process's resident size; None and the reason if that is unknown.

    Warm up what a first call sets up, such as thread pools, before.
    """
    _return_free_memory()
    reason = _reset_peak()
    if reason is not None:
        return None, reason
    baseline = _status_bytes("VmRSS")
    outputs = call()
    peak = _status_bytes("VmHWM") - baseline
    del outputs
    return max(0, peak), None


def io_bytes(case: Case) -> tuple[int, int]:
    """Bytes of (inputs, outputs): q, k, v (and dO) in; out and lse (and dq, dk, dv) out."""
    itemsize = DTYPES[case.dtype].itemsize
    q = case.batch * case.heads_q * case.len_q * case.head_dim * itemsize
    kv = 2 * case.batch * case.heads_kv * case.len_k * case.head_dim * itemsize
    lse = case.batch * case.heads_q * case.len_q * max(itemsize, 4)
    if case.backward:
        return 2 * q + kv, 2 * q + kv + lse
    return q + kv, q + lse


def _call(candidate: Contender, case: Case) -> Callable[[], object]:
    inputs = case.make_inputs()
    if case.backward:
        return lambda: candidate.training_step(case, inputs)
    return candidate.forward(case, inputs)


def _return_free_memory() -> None:
    """Give freed pages back to the system: reused, they would hide what the call needs."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _reset_peak() -> str | None:
    """Reset VmHWM; why that cannot be done here, or None."""
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    except OSError as error:
        return f"peak memory needs Linux's /proc/self/clear_refs ({error.strerror})"
    return None


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _run_forked(name: str, case: Case, threads: int) -> MemoryResult:
    """Fork, measure in the child, and report what it wrote (or that it died)."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(threads)
        try:
            result = measure_here(name, case)
        except Exception as error:
            result = MemoryResult.unmeasured(name, case, f"{type(error).__name__}: {error}")
        with os.fdopen(write_end, "w") as pipe:
            json.dump(result.as_dict(), pipe)
        os._exit(0)  # without the parent's exit handlers
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0 or not text:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "an error"
        return MemoryResult.unmeasured(name, case, f"the measured process ended with {how}")
    return MemoryResult.from_dict(json.loads(text))


def _serve(threads: int) -> None:
    """One JSON result for each JSON job on stdin. This process itself must start no threads:
    a forked child of a process with a thread pool could wait for threads that it does not have.
    """
    for line in sys.stdin:
        job = json.loads(line)
        result = _run_forked(job["contender"], Case.from_dict(job["case"]), threads)
        print(json.dumps(result.as_dict()), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _serve(int(sys.argv[1]))
