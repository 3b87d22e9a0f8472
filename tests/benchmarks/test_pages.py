"""Pages with code: their blocks are found, run in order, and what they print is kept."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from fused_attention.benchmarks.pages import code_blocks, run_page

PAGE = """# A page

```python
x = 2
print(x)
```

```text
2
```

```
not python
```

```python
y = x + 1
```
Words.

```text
not the output of the block above
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_blocks_and_their_outputs(page: Path) -> None:
    assert list(code_blocks(page)) == [(3, "x = 2\nprint(x)\n", "2\n"), (16, "y = x + 1\n", None)]


def test_page_is_one_program(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, printed = run_page(page)
    assert (names["x"], names["y"]) == (2, 3)
    assert [text for _, text in printed] == ["2\n", ""]
    assert capsys.readouterr().out == ""


def test_traceback_points_into_the_page(page: Path) -> None:
    page.write_text(PAGE.replace("x + 1", "x + z"))
    with pytest.raises(NameError) as caught:
        run_page(page)
    last = traceback.extract_tb(caught.tb)[-1]
    assert (last.filename, last.lineno) == (str(page), 17)
