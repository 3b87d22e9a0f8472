"""The pictures of docs/learn: there, small, linked, and drawn of the pages' own numbers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from fused_attention.benchmarks import (  # noqa: E402
    learn_figures,
    learn_pictures,
    seq2seq_pictures,
)
from fused_attention.benchmarks.learn_pictures import PICTURES, Picture  # noqa: E402
from fused_attention.benchmarks.pages import code_blocks  # noqa: E402
from fused_attention.benchmarks.style import BLUE  # noqa: E402

LEARN = Path(__file__).parents[2] / "docs" / "learn"
LARGEST = 60 * 1024


def test_pictures_are_those_of_the_pages() -> None:
    linked = [
        name
        for page in LEARN.glob("*.md")
        for name in re.findall(r"\]\(pictures/([^)]+)\)", page.read_text())
    ]
    stored = [path.name for path in (LEARN / "pictures").iterdir()]
    drawn = [*PICTURES, *seq2seq_pictures.PICTURES]
    assert sorted(linked) == sorted(drawn) == sorted(stored)


@pytest.mark.parametrize("name", [*PICTURES, *seq2seq_pictures.PICTURES])
def test_picture_is_small(name: str) -> None:
    content = (LEARN / "pictures" / name).read_bytes()
    assert content.startswith(b"\x89PNG")
    assert 1024 < len(content) <= LARGEST


@pytest.mark.parametrize("name", PICTURES)
def test_pages_compute_what_the_picture_shows(name: str) -> None:
    for stem, wanted in PICTURES[name].names.items():
        source = "".join(block.code for block in code_blocks(LEARN / f"{stem}.md"))
        nodes = list(ast.walk(ast.parse(source)))
        defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assert set(wanted) <= defined | stored


def heights(figure: Figure, color: str, panel: int = 0) -> list[float]:
    (line,) = [one for one in figure.axes[panel].get_lines() if to_hex(one.get_color()) == color]
    return list(line.get_ydata())


def test_curves_are_the_numbers_given() -> None:
    lengths = learn_figures.lengths_figure({1: 1.0, 2: 0.25}, {1: 1.0, 2: 0.75})
    assert heights(lengths, BLUE.lower()) == [1.0, 0.75]
    residual = learn_figures.residual_figure([1.0, 0.125], [1.0, 0.5])
    assert heights(residual, BLUE.lower()) == [1.0, 0.5]
    scale = learn_figures.scale_figure({4: (0.1, 0.9), 8: (0.2, 0.8)}, {4: (0, 1), 8: (0, 1)})
    assert heights(scale, BLUE.lower(), 0) == [0.1, 0.2]
    assert heights(scale, BLUE.lower(), 1) == [0.9, 0.8]


def cells(figure: Figure, panel: int) -> torch.Tensor:
    values = figure.axes[panel].collections[0].get_array()
    assert values is not None
    return torch.tensor(values.tolist())


def test_maps_are_the_weights_given() -> None:
    weights = torch.rand(3, 4, 4)
    figure = learn_figures.alignment_figure(weights, torch.arange(12).view(3, 4))
    assert torch.equal(cells(figure, 0), weights[0])
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["0", "1", "2", "3"]
    dates = learn_figures.dates_figure(weights[0, :2], "abcd", "xy")
    assert torch.equal(cells(dates, 0), weights[0, :2])
    counting = learn_figures.counting_figure(torch.rand(6, 4, 4), "abcd")
    assert len(counting.axes) == 6


def test_positions_show_vectors_and_dot_products() -> None:
    P = torch.randn(12, 4)
    figure = learn_figures.positions_figure({"one": P, "two": P})
    vectors, products = (figure.axes[panel].images[0].get_array() for panel in (0, 2))
    torch.testing.assert_close(torch.tensor(vectors.tolist()), P.T)
    torch.testing.assert_close(torch.tensor(products.tolist()), P @ P.T)


def test_local_p_is_drawn_by_the_function_of_the_page() -> None:
    drawn = []

    def local_p(query: torch.Tensor, memory: torch.Tensor, centre: torch.Tensor, D: int):
        assert len(query) == len(centre) and D == 2
        drawn.append(torch.rand(len(query), len(memory)))
        return drawn[0]

    figure = learn_figures.local_figure(local_p)
    assert len(figure.axes) == 6
    assert torch.equal(cells(figure, 5), drawn[0])


def test_pictures_are_drawn_of_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text("```python\nsize = 3\n```\n")
    drawn = []

    def draw(size: int) -> Figure:
        drawn.append(size)
        return Figure(figsize=(size, size))

    pictures = {name: Picture(draw, {"page": ("size",)}) for name in ("a.png", "b.png")}
    monkeypatch.setattr(learn_pictures, "PICTURES", pictures)
    assert learn_pictures.main([str(tmp_path), "b.png"]) == 0
    assert learn_pictures.main([str(tmp_path)]) == 0
    assert drawn == [3, 3, 3]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["a.png", "b.png"]
    assert "b.png (" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([str(LEARN), "other.png"], "names: must be of "),
        ([str(LEARN.parent)], "folder: must hold 01-seq2seq.md, "),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        learn_pictures.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
