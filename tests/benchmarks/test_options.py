"""Wrong arguments of the benchmark programs: one sentence, before anything is measured."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from fused_attention.benchmarks import options

PROGRAMS = (
    *("additive", "char_gpt", "growth", "local", "maps", "models", "overhead", "packed_bert"),
    "seq2seq",
)
WITH_SECONDS = ("additive", "growth", "local", "maps", "models", "packed_bert")


def refusal(program: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says; it must say no more than a line."""
    main = importlib.import_module(f"fused_attention.benchmarks.{program}").main
    with pytest.raises(SystemExit) as caught:
        main(["reports", *arguments] if program == "seq2seq" else arguments)
    told = capsys.readouterr()
    assert caught.value.code == 2 and not told.out and told.err.count("\n") == 1, told
    return told.err


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_threads_are_a_positive_number(program, threads, capsys):
    before = torch.get_num_threads()
    assert "--threads" in refusal(program, ["--threads", threads], capsys)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("program", WITH_SECONDS)
@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_seconds_are_finite_and_not_negative(program, seconds, capsys):
    assert "--seconds" in refusal(program, [f"--seconds={seconds}"], capsys)


@pytest.mark.parametrize("program", PROGRAMS[:-1])
def test_a_report_that_cannot_be_stored_is_refused_before_the_measurement(
    program, tmp_path, capsys
):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "report.json", "-"):
        assert "--json" in refusal(program, ["--json", str(path)], capsys)


def test_what_else_is_a_number(capsys):
    assert "--length" in refusal("local", ["--length", "0"], capsys)
    assert "--sigma" in refusal("local", ["--sigma=-1"], capsys)
    assert "--steps" in refusal("char_gpt", ["--steps", "0"], capsys)
    assert "--rounds" in refusal("overhead", ["--rounds", "0"], capsys)
    assert "--lines" in refusal("packed_bert", ["--lines", "0"], capsys)
    assert "--dtypes" in refusal("maps", ["--dtypes", "fp33"], capsys)
    assert "--lengths" in refusal("maps", ["--lengths", "12,x"], capsys)


def test_a_report_is_stored_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    arguments = ["--threads", str(torch.get_num_threads()), "--json", str(path)]
    found = options.parse(options.parser_of("program", "A summary."), arguments)
    assert found.threads == torch.get_num_threads()
    options.store({"a": 1}, found.json)
    assert json.loads(path.read_text()) == {"a": 1}
    options.store({"a": 2}, None)
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "report.json"]
