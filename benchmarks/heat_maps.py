"""Attention weights as pictures: a row for each step, a column for each source token."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from fused_attention.training.aligning import TextAlignment

from .mask_pictures import SEEN
from .style import INK, MUTED, ORANGE

CELL = 0.27  # inches
MOST_LABELLED = 60  # tokens on an axis that have room for their texts


def draw_weights(
    axes: Axes, weights: Tensor, rows: Sequence[str], columns: Sequence[str], lines: float = 0.8
) -> None:
    """A heat map of weights in [0, 1], its rows and columns named."""
    cells = weights.numpy()
    axes.pcolormesh(cells, cmap=SEEN, vmin=0, vmax=1, edgecolors="white", linewidth=lines)
    axes.set_ylim(len(rows), 0)
    axes.set_aspect("equal")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    for axis, labels in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_ticks([i + 0.5 for i in range(len(labels))], labels)
    without_frame(axes)


def alignment_figure(alignment: TextAlignment) -> Figure:
    """An alignment in the order of the sentence; local attention with its places and windows."""
    rows, columns = len(alignment.target), len(alignment.source)
    longest = [max(map(len, texts)) for texts in (alignment.target, alignment.source)]
    margins = [0.6 + 0.09 * letters for letters in longest]
    size = (max(2.6, CELL * columns + margins[0]), max(2.2, CELL * rows + margins[1]))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    draw_alignment(axes, alignment)
    return figure


def draw_alignment(axes: Axes, alignment: TextAlignment) -> None:
    """The weights of an alignment, with dots at the places and frames around the windows."""
    rows, columns = _readable(alignment.target), _readable(alignment.source)
    draw_weights(axes, alignment.weights, rows, columns)
    if max(map(len, columns[:-1]), default=0) > 1:
        axes.tick_params(axis="x", rotation=90)
    axes.set_xlabel("source", color=INK)
    axes.set_ylabel("translation", color=INK)
    for row, (first, last) in enumerate(alignment.windows or ()):
        if first <= last:
            size = (last - first + 1, 1)
            axes.add_patch(Rectangle((first, row), *size, fill=False, edgecolor=MUTED, lw=0.8))
    if alignment.places is not None:
        steps = [row + 0.5 for row in range(len(alignment.places))]
        centres = [place + 0.5 for place in alignment.places]
        axes.plot(centres, steps, "o", color=ORANGE, markersize=4, clip_on=False)
        axes.set_xlim(0, len(alignment.source))


def without_frame(axes: Axes) -> None:
    """No spines, for pictures that have edges of their own."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=MUTED, labelsize=8)


def _readable(tokens: Sequence[str]) -> list[str]:
    """Texts that matplotlib shows as they are; a space alone would be nothing to see."""
    if len(tokens) > MOST_LABELLED:
        return [""] * len(tokens)
    blank = {" ": "\N{OPEN BOX}", "\n": "\\n"}
    return [blank.get(token, token.strip()).replace("$", r"\$") for token in tokens]
