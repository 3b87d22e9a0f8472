"""Draws the pictures of docs/learn, of what the code of its pages computes.

    python -m fused_attention.benchmarks.learn_pictures docs/learn [NAME.png ...]

Each figure names the pages that it needs; they are run as the tests run them, and the figure takes
its numbers from the names that their code leaves. So a picture shows what the page says.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from PIL import Image

from .learn_figures import (
    alignment_figure,
    counting_figure,
    dates_figure,
    lengths_figure,
    local_figure,
    positions_figure,
    residual_figure,
    scale_figure,
)
from .pages import run_page
from .style import DPI

COLOURS = 128


class Picture(NamedTuple):
    """How a picture is drawn, and of which names of which pages; they are `draw`'s arguments."""

    draw: Callable[..., Figure]
    names: dict[str, tuple[str, ...]]


PICTURES = {
    "lengths.png": Picture(
        lengths_figure, {"01-seq2seq": ("without",), "02-attention": ("with_attention",)}
    ),
    "alignment.png": Picture(alignment_figure, {"02-attention": ("weights", "source")}),
    "scale.png": Picture(scale_figure, {"03-self-attention": ("scaled", "unscaled")}),
    "positions.png": Picture(positions_figure, {"05-positions": ("variants",)}),
    "residual.png": Picture(residual_figure, {"06-residual-and-norm": ("plain", "residual")}),
    "dates.png": Picture(dates_figure, {"07-transformer": ("across", "asked", "answer")}),
    "local.png": Picture(local_figure, {"08-local-and-global": ("local_p",)}),
    "counting.png": Picture(counting_figure, {"10-gpt": ("by_head", "read")}),
}


def draw_pictures(folder: Path, wanted: Sequence[str]) -> list[Path]:
    """Draw the pictures of `wanted` into folder/pictures, each page being run once."""
    pages: dict[str, dict[str, Any]] = {}
    written = []
    (folder / "pictures").mkdir(exist_ok=True)
    for name in wanted:
        picture = PICTURES[name]
        arguments = []
        for stem, attributes in picture.names.items():
            if stem not in pages:
                torch.manual_seed(0)
                pages[stem], _ = run_page(folder / f"{stem}.md")
            arguments += [pages[stem][attribute] for attribute in attributes]
        path = folder / "pictures" / name
        save(picture.draw(*arguments), path)
        written.append(path)
    return written


def save(figure: Figure, path: Path) -> None:
    """Write a small PNG: few colours, and nothing but the picture, so it changes only with it."""
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI)
    picture = Image.open(content).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 if there is no such folder or picture."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_attention.benchmarks.learn_pictures",
        description="Draw the pictures of docs/learn.",
    )
    parser.add_argument("folder", type=Path, help="docs/learn of the source tree")
    parser.add_argument("names", nargs="*", metavar="NAME.png", help="default: all")
    options = parser.parse_args(arguments)
    missing = {f"{stem}.md" for picture in PICTURES.values() for stem in picture.names}
    missing -= {path.name for path in options.folder.glob("*.md")}
    if missing:
        parser.error(f"folder: must hold {', '.join(sorted(missing))}, got {options.folder}")
    unknown = [name for name in options.names if name not in PICTURES]
    if unknown:
        parser.error(f"names: must be of {', '.join(PICTURES)}, got {', '.join(unknown)}")
    for path in draw_pictures(options.folder, options.names or list(PICTURES)):
        print(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
