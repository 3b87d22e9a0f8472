"""Reports as tables and sentences."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from example_report import example_report, result

from fused_attention import Band
from fused_attention.benchmarks import table
from fused_attention.benchmarks.cases import square
from fused_attention.benchmarks.contenders import NAIVE, OURS, SDPA
from fused_attention.benchmarks.headlines import headlines
from fused_attention.benchmarks.markdown import block_command, markdown_table, replace_block
from fused_attention.benchmarks.run import save


def test_time_rows() -> None:
    rows = table.time_rows(example_report(), threads=2)
    assert rows[0] == [
        *("B1 H2 L128 D64 full fp32", "forward"),
        *("10", "40", "20", "4.00x", "2.00x", "25 %"),
    ]
    assert [row[1] for row in rows] == ["forward", "backward"] * 2 + ["forward"]
    assert {len(row) for row in rows} == {len(table.time_headers(example_report()))}
    assert table.time_rows(example_report(), threads=1) == []


def test_summary_puts_forward_and_backward_side_by_side() -> None:
    rows = table.summary_rows(example_report(), threads=2)
    assert len(rows) == 3
    assert rows[0][1:] == ["10", "4.00x", "2.00x"] * 2
    assert rows[2][1:] == ["10", "4.00x", "2.00x", "—", "—", "—"]


def test_what_is_not_timed_has_no_number() -> None:
    report = example_report()
    forward = report["results"][0]
    forward["contenders"][OURS] = {
        "status": "WRONG",
        "accuracy_ratio": 7.0,
        "accuracy_worst": "out",
    }
    forward["contenders"][NAIVE] = {"status": "skipped", "reason": "too large"}
    forward["speedup"], forward["limit_share"] = {}, None
    row = table.time_rows(report, threads=2)[0]
    assert row[2:] == ["WRONG", "—", "20", "—", "—", "—"]
    assert "NOT TIMED: fused_attention on B1 H2 L128" in headlines(report)[0]
    assert "out is 7.00 times as far off as allowed" in headlines(report)[0]


def test_noise_is_marked() -> None:
    report = example_report()
    assert "*" not in table.report_markdown(report)
    report["results"][1]["load"]["other_cores"] = 0.5
    assert table.time_rows(report, threads=2)[1][0].endswith("fp32*")
    assert table.NOISE_NOTE in table.report_markdown(report)
    report["results"][1]["load"]["other_cores"] = None
    assert "*" not in table.report_markdown(report)


def test_memory_rows() -> None:
    report = example_report()
    rows = table.memory_rows(report)
    assert [row[:2] for row in rows] == [
        ["128", "forward"],
        ["256", "forward"],
        ["128", "forward + backward"],
        ["256", "forward + backward"],
    ]
    assert {row[5] for row in rows} == {"10.00"}
    report["memory"] = [m for m in report["memory"] if m["contender"] == OURS]
    report["memory"][0].update(peak_bytes=None, reason="not on this system")
    assert table.memory_rows(report)[0][2:] == ["—", "—", "—", "—"]
    assert table.unmeasured_memory(report) == ["peak memory not measured: not on this system"]


def test_largest_thread_count_is_what_readme_shows() -> None:
    report = example_report()
    single = copy.deepcopy(report["results"])
    for entry in single:
        entry["threads"] = 1
    report["results"] = single + report["results"]
    assert table.thread_counts(report) == [1, 2]
    assert "2 threads: An Imaginary CPU, 2 cores" in table.report_markdown(report)


def test_headlines_tell_range_and_memory() -> None:
    report = example_report()
    report["results"][0]["speedup"] = {NAIVE: 6.0, SDPA: 1.0}
    lines = headlines(report)
    assert lines[0].startswith("against naive formula: 4.0 to 6.0 times the speed, median 4.0")
    assert "L128" in lines[0]
    assert lines[1].startswith("against torch SDPA: 1.0 to 2.0 times the speed")
    assert lines[2].startswith("against torch SDPA with a window as boolean mask: 2.0 times")
    assert lines[3].startswith("memory at length 256, one head: forward peaks at")
    assert len(lines) == 5


def test_stored_reports_become_one_block(tmp_path: Path) -> None:
    assert "No results" in table.stored_markdown(tmp_path)
    for name in ("b", "a"):
        report = example_report()
        report["set"] = name
        report["results"] = [result(square(1, 1, 8, 4, band=Band.causal()), "forward")]
        save(report, tmp_path / f"{name}.json")
    block = table.stored_markdown(tmp_path)
    assert block.index("Set `a`") < block.index("Set `b`")


def test_markdown_table() -> None:
    lines = markdown_table(["a", "b"], [["x", "1"]], left=1).splitlines()
    assert lines == ["| a | b |", "| --- | ---: |", "| x | 1 |"]


@pytest.mark.parametrize("text", ["", "<!-- begin x -->\n", "<!-- end x -->\n<!-- begin x -->\n"])
def test_block_needs_its_markers(text: str) -> None:
    with pytest.raises(ValueError, match="must hold one"):
        replace_block(text, "x", "new")


def test_block_is_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- begin x -->\nold\n<!-- end x -->\nafter\n")

    def command(*arguments: str) -> int:
        return block_command(
            arguments, program="p", description="d", marker="x", make_block=lambda: "new"
        )

    assert command() == 0
    assert capsys.readouterr().out == "new\n"
    assert command("--check", str(path)) == 1
    assert "out of date" in capsys.readouterr().err
    assert command("--write", str(path)) == 0
    assert path.read_text() == "before\n<!-- begin x -->\nnew\n<!-- end x -->\nafter\n"
    assert command("--check", str(path)) == 0
