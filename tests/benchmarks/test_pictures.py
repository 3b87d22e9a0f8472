"""The pictures: written, with the lines and labels that they should have."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_report import example_report

pytest.importorskip("matplotlib")

from fused_attention.benchmarks import mask_pictures, pictures  # noqa: E402
from fused_attention.benchmarks.pictures import Panel  # noqa: E402

PNG_SIGNATURE = b"\x89PNG"


def test_all_pictures_are_written(tmp_path: Path) -> None:
    paths = pictures.save_pictures(example_report(), tmp_path / "new")
    assert [path.name for path in paths] == ["time.png", "memory.png", "masks.png"]
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(PNG_SIGNATURE)
        assert len(content) > 10_000


def test_report_without_lines_gives_the_masks_alone(tmp_path: Path) -> None:
    report = example_report()
    report["memory"] = []
    for result in report["results"]:
        result["case"]["series"] = ""
    assert [p.name for p in pictures.save_pictures(report, tmp_path)] == ["masks.png"]


def test_time_figure_has_a_panel_for_each_pass() -> None:
    figure = pictures.time_figure(example_report())
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    wanted = [f"full, {way}\n2 heads, D 64, fp32, 2 threads" for way in ("forward", "backward")]
    assert titles == wanted
    for axes in figure.axes:
        assert len(axes.get_lines()) == 3
        assert {text.get_text() for text in axes.texts} == {
            "fused_attention",
            "naive formula",
            "torch SDPA",
        }
        assert axes.get_xlabel() and axes.get_ylabel()


def test_line_names_keep_their_distance() -> None:
    heights = [0.5, 0.5, 0.52, 0.9]
    moved = pictures._spread(heights)
    ordered = sorted(moved)
    gaps = [b - a for a, b in zip(ordered, ordered[1:], strict=False)]
    assert min(gaps) > 0.99 * pictures.LINE_GAP
    assert moved[3] == 0.9, "what does not overlap stays"


def test_line_that_ends_early_is_named_where_it_was_heading() -> None:
    panel = Panel("squares")
    for length in (1, 2, 4):
        panel.add("line", length, length**2)
    assert pictures._value_at(8, panel.lines["line"]) == pytest.approx(64)
    assert pictures._value_at(4, panel.lines["line"]) == 16
    assert pictures._value_at(8, [(1, 5.0)]) == 5.0


@pytest.mark.parametrize("drawing", mask_pictures.DRAWINGS, ids=lambda d: d.title)
def test_mask_picture_shows_the_band(drawing: mask_pictures.Drawing) -> None:
    figure = mask_pictures.masks_figure()
    axes = figure.axes[mask_pictures.DRAWINGS.index(drawing)]
    cells = axes.collections[0].get_array()
    assert cells is not None
    keys = mask_pictures.KEYS
    expected = drawing.band.mask(drawing.len_q, keys)
    expected[:, drawing.kv_length :] = False
    assert cells.reshape(drawing.len_q, keys).tolist() == expected.int().tolist()
