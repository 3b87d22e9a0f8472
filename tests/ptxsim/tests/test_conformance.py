"""Every microkernel on the emulator, and all of them through ptxas."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ptxsim.conformance import all_cases
from ptxsim.conformance.__main__ import NO_DEVICE, main
from ptxsim.conformance.emulate import run
from ptxsim.conformance.probe import Case, module
from ptxsim.nvcc import find_nvcc

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_emulator_gives_what_the_manual_says(case: Case) -> None:
    output = run(case)
    if case.tolerance:
        np.testing.assert_allclose(output, case.expected, rtol=case.tolerance, atol=0)
    else:
        np.testing.assert_array_equal(output, case.expected)


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.skipif(find_nvcc() is None, reason="needs ptxas")
@pytest.mark.parametrize("arch", ["80", "90a"])
def test_ptxas_accepts_the_cases(arch: str, tmp_path: Path) -> None:
    source = tmp_path / "cases.ptx"
    source.write_text(module(arch, [case.body for case in CASES if case.arch == arch]))
    ptxas = Path(find_nvcc() or "").with_name("ptxas")
    command = [str(ptxas), f"-arch=sm_{arch}", "-O0", str(source), "-o", str(tmp_path / "cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]


def test_replay_without_a_gpu_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: no such file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert main([]) == NO_DEVICE
    assert "no CUDA driver" in capsys.readouterr().err


def test_replay_stores_its_results(tmp_path: Path) -> None:
    target = tmp_path / "conformance.json"
    assert main(["--emulator", "--json", str(target)]) == 0
    stored = json.loads(target.read_text())
    assert {line["emulator"] for line in stored["cases"]} == {"agrees"}
    assert len(stored["cases"]) == len(CASES)
