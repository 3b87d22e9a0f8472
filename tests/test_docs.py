"""Every Python block of docs/*.md runs, from top to bottom of its page; links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Libraries that a page is about: `make test` installs them, other environments may lack them.
OPTIONAL = ("transformers", "kernels")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """The Python blocks and the number of lines that stand above each."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        yield text.count("\n", 0, match.start(1)), match[1]


@every_page
def test_code_runs(page: Path) -> None:
    source = "".join(code for _, code in blocks(page))
    for library in OPTIONAL:
        imported = re.search(rf"^\s*(import|from) {library}\b", source, re.MULTILINE)
        if imported and importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    names: dict[str, object] = {"__name__": page.stem}
    for above, code in blocks(page):
        # The blank lines make a traceback point into the page.
        exec(compile("\n" * above + code, str(page), "exec"), names)


@every_page
def test_page_has_code(page: Path) -> None:
    assert list(blocks(page)), "a page says what to type"


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@every_page
def test_lines_are_short(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


def test_there_are_pages() -> None:
    assert {"sdpa", "multi_head_attention"} <= {page.stem for page in PAGES}
