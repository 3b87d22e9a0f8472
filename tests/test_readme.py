"""README says what is true: its tables, its code, its commands, its links, its tree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fused_attention.backends import triton
from fused_attention.benchmarks import table
from fused_attention.benchmarks.markdown import replace_block
from fused_attention.cli import matrix
from fused_attention.cli.program import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = tuple(
    ROOT / name
    for name in ("README.md", "benchmarks/README.md", "csrc/README.md", "triton_kernels/README.md")
)


def test_support_matrix_is_the_printed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a machine without a GPU, where nobody has switched Triton's interpreter on."""
    monkeypatch.setattr(triton, "_interpreted", lambda: False)
    assert replace_block(README, matrix.README_MARKER, matrix.matrix_markdown()) == README


def test_measured_table_is_that_of_the_stored_results() -> None:
    assert replace_block(README, table.README_MARKER, table.stored_markdown()) == README


def test_python_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert re.search(r"^chosen +cpu$", capsys.readouterr().out, flags=re.M)


def test_first_screen_holds_the_two_commands() -> None:
    first_screen = "\n".join(README.splitlines()[:30])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        for line in re.findall(r"(?:^\s*|`)make ([a-z -]+?)(?:  |`|$)", page.read_text(), re.M):
            assert set(line.split()) <= targets, f"{page.name}: make {line}"


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.parent.name)
def test_commands_parse(page: Path) -> None:
    commands = re.findall(r"^\s*fused-attention (.*?)(?:  |$)", page.read_text(), flags=re.M)
    assert commands
    for command in commands:
        build_parser().parse_args(shlex.split(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_tree_is_there() -> None:
    tree = README.partition("## The tree")[2].partition("```\n")[2].partition("```")[0]
    parents: list[Path] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names, _, explanation = line.strip().partition("  ")
        assert explanation.strip(), line
        for name in names.split(", "):
            path = (parents[depth - 1] if depth else ROOT) / name
            assert path.exists(), path
        parents[depth:] = [path]


def test_rooms_of_the_benchmarks_are_there() -> None:
    text = (ROOT / "benchmarks/README.md").read_text().partition("## The rooms")[2]
    named = set(re.findall(r"^    ([a-z0-9_]+\.py) ", text, flags=re.M))
    there = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__.py"}
    assert named == there
