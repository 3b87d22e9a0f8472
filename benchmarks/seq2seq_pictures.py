"""Draws the pictures of docs/learn that show stored reports of recurrent encoder-decoders.

    python -m fused_attention.benchmarks.seq2seq_pictures benchmarks/results/models \
        docs/learn/pictures [NAME.png ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from fused_attention.training.aligning import TextAlignment

from .heat_maps import alignment_figure, draw_alignment
from .learn_figures import name_line, one_panel
from .learn_pictures import save
from .style import BLUE, INK, MUTED, ORANGE

LINES = {  # of the lengths' figure
    "bahdanau": (BLUE, "with attention"),
    "none": (ORANGE, "one vector"),
    "g2p-en": (MUTED, "g2p-en: one vector,\nknows these words"),
}


class Picture(NamedTuple):
    """How a picture is drawn, and of which report."""

    draw: Callable[[dict[str, Any]], Figure]
    report: str


def date_figure(report: dict[str, Any]) -> Figure:
    """Where Bahdanau's attention looks in a date."""
    return alignment_figure(alignment_of(report["alignment"]))


def words_figure(report: dict[str, Any]) -> Figure:
    """BLEU of the phonemes against the length of the word, as in Bahdanau et al., figure 2."""
    figure, axes = one_panel((6.6, 3.3))
    for name, (color, label) in LINES.items():
        runs = report["models"][name]
        rows = [run["by_length"] for run in runs]
        middles = [sum(row["letters"]) / 2 for row in rows[0]]
        heights = [sum(row["bleu"] for row in at) / len(at) for at in zip(*rows, strict=True)]
        axes.plot(middles, heights, color=color, marker="o", markersize=4)
        name_line(axes, (middles[-1], heights[-1]), label, color)
    axes.xaxis.set_major_locator(FixedLocator(middles))
    axes.xaxis.set_major_formatter(
        lambda x, _: next(
            "-".join(map(str, row["letters"])) for row in rows[0] if sum(row["letters"]) / 2 == x
        )
    )
    axes.set_ylim(0, 100)
    axes.set_xlabel("letters of the word", color=INK)
    axes.set_ylabel("BLEU of its phonemes", color=INK)
    return figure


def places_figure(report: dict[str, Any]) -> Figure:
    """The places of local-p, its windows and its weights, one panel for each seed."""
    runs = report["attentions"]["local-p"]
    figure = Figure(figsize=(3.6 * len(runs), 3.6), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        draw_alignment(axes, alignment_of(run["alignment"]))
        axes.set_xlabel(f"seed {run['seed']}", color=INK)
    return figure


def alignment_of(values: dict[str, Any]) -> TextAlignment:
    """A stored alignment as it was."""
    windows = values["windows"]
    windows = None if windows is None else [(first, last) for first, last in windows]
    return TextAlignment(
        **{**values, "weights": torch.tensor(values["weights"]), "windows": windows}
    )


PICTURES = {
    "date_alignment.png": Picture(date_figure, "seq2seq_dates.json"),
    "words.png": Picture(words_figure, "seq2seq_lengths.json"),
    "places.png": Picture(places_figure, "seq2seq_places.json"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 if there is no such report or picture."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_attention.benchmarks.seq2seq_pictures",
        description="Draw the stored reports of recurrent encoder-decoders.",
    )
    parser.add_argument("results", type=Path, help="the folder of the reports")
    parser.add_argument("pictures", type=Path, help="the folder to draw into")
    parser.add_argument("names", nargs="*", metavar="NAME.png", help="default: all")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in PICTURES]
    if unknown:
        parser.error(f"names: must be of {', '.join(PICTURES)}, got {', '.join(unknown)}")
    wanted = {name: PICTURES[name] for name in options.names or PICTURES}
    for picture in wanted.values():
        if not (options.results / picture.report).is_file():
            parser.error(f"results: must hold {picture.report}, got {options.results}")
    options.pictures.mkdir(parents=True, exist_ok=True)
    for name, picture in wanted.items():
        report = json.loads((options.results / picture.report).read_text())
        path = options.pictures / name
        save(picture.draw(report), path)
        print(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
