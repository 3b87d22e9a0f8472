"""The command line as a whole: help, wrong arguments, missing packages, being interrupted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fused_attention
from fused_attention.cli import info, output, program

COMMANDS = (
    *("info", "explain", "check", "bench", "demo", "fetch"),
    *("train", "generate", "embed", "translate", "attention-map"),
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_parses(command: Any, name: str) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out
    example = outcome.out.partition("Example: ")[2].split()
    assert example[:2] == ["fused-attention", name]
    program.build_parser().parse_args(example[1:])


def test_help_names_the_commands(command: Any) -> None:
    outcome = command("--help")
    assert outcome.code == 0
    assert all(name in outcome.out for name in COMMANDS)


def test_version(command: Any) -> None:
    assert command("--version").out == f"fused-attention {fused_attention.__version__}\n"


WRONG = (
    ([], "choose one of the commands info, explain"),
    (["dance"], "invalid choice: 'dance'"),
    (["info", "extra"], "unrecognized arguments: extra"),
    (["info", "--mat"], "unrecognized arguments: --mat"),
    (["info", "--json", "no/such/folder/x.json"], "must lie in a folder, 'no/such/folder'"),
    (["info", "--json", "."], "must name a file"),
    (["explain"], "arguments are required: --shape"),
    (["explain", "--shape", "1,2,3"], "must be four numbers B,Hq,Lq,D, got '1,2,3'"),
    (["explain", "--shape", "1,2,x,8"], "must be a whole number, got 'x'"),
    (["explain", "--shape", "1,0,3,8"], "Hq must be at least 1, got 0"),
    (["explain", "--shape", "1,2,3,8", "--dtype", "int8"], "invalid choice: 'int8'"),
    (["explain", "--shape", "1,2,3,8", "--window", "4"], "must be two numbers LEFT,RIGHT"),
    (["explain", "--shape", "1,2,3,8", "--window=-1,0"], "window: must be a pair"),
    (["explain", "--shape", "1,2,3,8", "--window", "1,1", "--causal"], "window: right must be"),
    (["explain", "--shape", "1,4,3,8", "--kv-heads", "3"], "key: its number of heads"),
    (["explain", "--shape", "1,4,3,8", "--kv-heads", "0"], "must be at least 1, got 0"),
    (["explain", "--shape", "1,4,3,8", "--bias", "1,2"], "--bias: must be four numbers"),
    (["explain", "--shape", "1,4,3,8", "--bias", "1,3,1,1"], "bias: must be 4-D and broadcast"),
    (["explain", "--shape", "1,4,3,8", "--bias", "--packed"], "bias: cannot be used with packed"),
    (["explain", "--shape", "1,4,3,8", "--scale", "nan"], "scale: must be finite"),
    (["explain", "--shape", "1,4,3,8", "--dropout", "1"], "dropout_p: "),
    (["explain", "--shape", "1,4,3,8", "--backend", "gpu"], "backend: must be one of"),
    (
        ["check", "--backend", "gpu"],
        "--backend: must be of cuda_sm80, cpu, triton, reference, got 'gpu'",
    ),
    (["check", "--dtype", "fp32,fp8"], "must be of fp64, fp32, bf16, fp16, got 'fp8'"),
    (["check", "--seed", "x"], "invalid int value: 'x'"),
    (["bench", "--set", "gpu"], "invalid choice: 'gpu'"),
    (["bench", "--threads", "0"], "must be at least 1, got 0"),
    (["bench", "--threads", "1,two"], "must be a whole number, got 'two'"),
    (["bench", "--seconds", "0"], "--seconds: must be in (0, 3600), got 0.0"),
    (["bench", "--out", "pyproject.toml/x"], "must be a folder"),
)


@pytest.mark.parametrize("arguments, message", WRONG, ids=lambda x: " ".join(x)[:50])
def test_wrong_arguments_give_one_sentence(
    command: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    outcome = command(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert message in outcome.err
    assert outcome.err.startswith("fused-attention")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("name, package", [("info", "rich"), ("demo", "matplotlib")])
def test_missing_package_gives_one_sentence(
    command: Any, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    real = output.importlib.import_module

    def without_package(module: str) -> Any:
        if module.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(module)

    monkeypatch.setattr(output.importlib, "import_module", without_package)
    outcome = command(name)
    assert outcome.code == 1
    assert outcome.out == ""
    wanted = (
        f'needs the Python package {package}, which pip install "fused-attention[cli]" installs'
    )
    assert wanted in outcome.err
    assert outcome.err.count("\n") == 1


def test_json_needs_no_extra_package(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(output.importlib, "import_module", nothing)
    assert command("info", "--json").code == 0
    assert command("explain", "--shape", "1,2,3,8").code == 0


@pytest.mark.parametrize("package", ["tokenizers", "somebody_elses"])
def test_imports_within_a_command(
    package: str, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> Any:
        raise ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.models")

    monkeypatch.setattr(info, "gather", fails)
    if package not in output.EXTRA_PACKAGES:  # a mistake of the program
        with pytest.raises(ModuleNotFoundError):
            command("info")
        return
    outcome = command("info")
    assert outcome.code == 1
    assert "needs the Python package tokenizers, which pip install" in outcome.err
    assert outcome.err.count("\n") == 1


def test_interrupt_is_no_traceback(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "gather", interrupt)
    outcome = command("info")
    assert outcome.code == 130
    assert outcome.err == "fused-attention info: interrupted\n"


def test_module_runs_and_a_closed_pipe_is_no_error() -> None:
    script = f"{sys.executable} -m fused_attention.cli info --json | head -c 1"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "{"
    assert done.stderr == ""


def test_progress_lines_of_a_log_are_rare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 1.0, 6.0, 6.0, 7.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(now))
    begin = output._Lines(total=4.0)
    for step in ("first", "second", "third"):
        begin(step, 1.0)
    assert capsys.readouterr().err == "[ 25 %] second\n"


def test_progress_bar_moves_when_a_step_ends() -> None:
    class Bar:
        def __init__(self) -> None:
            self.states: list[tuple[float, str]] = []

        def add_task(self, description: str, total: float) -> int:
            return 7

        def update(self, task: int, completed: float, description: str) -> None:
            self.states.append((completed, description))

    bar = Bar()
    begin = output._BarSteps(bar, total=5.0)
    begin("slow [one]", 4.0)
    begin("quick", 1.0)
    assert bar.states == [(0.0, "slow \\[one]"), (4.0, "quick")]
