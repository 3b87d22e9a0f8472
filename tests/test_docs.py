"""Every Python block of docs runs, from top to bottom of its page, and prints what the page says.

Numbers of the text below a block may differ in their last digit: other CPUs round otherwise.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fused_attention.benchmarks.pages import code_blocks, run_page
from fused_attention.cli.program import build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# Libraries that a page is about: `make test` installs them, other environments may lack them.
OPTIONAL = ("transformers", "kernels")
NUMBER = re.compile(r"[-+]?\d+(?:\.(\d+))?")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def same_output(said: str, printed: str) -> bool:
    """Whether the words are the same, and the numbers up to 2 of their last decimal."""
    if [NUMBER.sub("#", line).split() for line in said.splitlines()] != [
        NUMBER.sub("#", line).split() for line in printed.splitlines()
    ]:
        return False
    for ours, theirs in zip(NUMBER.finditer(said), NUMBER.finditer(printed), strict=True):
        decimals = len(ours[1] or "")
        allowed = 2.5 * 10**-decimals if decimals else 0
        if abs(float(ours[0]) - float(theirs[0])) > allowed:
            return False
    return True


@every_page
def test_code_runs(page: Path) -> None:
    source = "".join(block.code for block in code_blocks(page))
    for library in OPTIONAL:
        imported = re.search(rf"^\s*(import|from) {library}\b", source, re.MULTILINE)
        if imported and importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    _, printed = run_page(page)
    for block, text in printed:
        if block.output is not None:
            assert same_output(block.output, text), f"line {block.above}: printed\n{text}"


def test_outputs_are_compared() -> None:
    assert same_output("a 0.50\nb  7\n", "a 0.51\nb 7\n")
    assert not same_output("a 0.50\n", "a 0.54\n")
    assert not same_output("7 words\n", "8 words\n")
    assert not same_output("True\n", "False\n")
    assert not same_output("1\n", "1\n1\n")


@every_page
def test_page_has_code(page: Path) -> None:
    assert list(code_blocks(page)), "a page says what to type"


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@every_page
def test_lines_are_short(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


@every_page
def test_commands_parse(page: Path) -> None:
    for command in re.findall(r"^fused-attention (.*)$", page.read_text(), re.MULTILINE):
        build_parser().parse_args(shlex.split(command, comments=True))


def test_there_are_pages() -> None:
    assert {"sdpa", "multi_head_attention", "03-self-attention"} <= {page.stem for page in PAGES}
