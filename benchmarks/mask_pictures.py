"""The masks as a person would draw them: a grid of queries and keys, visible cells filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator
from torch import Tensor

from fused_attention import Band

from .style import BLUE, INK, MUTED, ORANGE, PALE

KEYS = 10
SEEN = LinearSegmentedColormap.from_list("seen", [PALE, BLUE])


@dataclass(frozen=True)
class Drawing:
    """One mask: a title, how to ask for it, and what it is made of."""

    title: str
    code: str
    band: Band
    len_q: int = KEYS
    kv_length: int = KEYS
    note: str = ""  # for the room below a grid of few queries


DRAWINGS = (
    Drawing("full", "attention(q, k, v)", Band.full()),
    Drawing("causal", "causal=True", Band.causal()),
    Drawing("sliding window", "window=(3, 0)", Band.window(3, 0)),
    Drawing("window, both sides", "window=(2, 2)", Band.window(2, 2)),
    Drawing(
        "causal, fewer queries than keys",
        "causal=True",
        Band.causal(),
        len_q=4,
        note="The last query meets the last key,\nas decoding with a cache needs it.",
    ),
    Drawing("padded keys", "kv_lengths=[7]", Band.full(), kv_length=7),
)


def masks_figure() -> Figure:
    """Six masks of ten keys each, with the call that asks for them."""
    figure = Figure(figsize=(10.2, 8.2), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
    figure.suptitle("Which keys a query sees", fontsize=14, fontweight="bold", color=INK)
    for axes, drawing in zip(figure.subplots(2, 3).flat, DRAWINGS, strict=True):
        draw_mask(axes, drawing)
    figure.legend(
        handles=[
            Patch(facecolor=BLUE, label="seen"),
            Patch(facecolor=PALE, edgecolor="#cfcfcf", label="hidden"),
            Patch(facecolor="white", edgecolor=MUTED, hatch="////", label="beyond the length"),
            Rectangle((0, 0), 1, 1, facecolor="none", edgecolor=ORANGE, lw=2, label="diagonal"),
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=10,
    )
    return figure


def draw_mask(axes: Axes, drawing: Drawing) -> None:
    """Queries run down, keys run to the right; cell (i, j) is filled when query i sees key j."""
    lengths = torch.tensor([drawing.kv_length])
    draw_cells(axes, drawing.band.mask(drawing.len_q, KEYS, kv_lengths=lengths)[0, 0])
    beyond = KEYS - drawing.kv_length
    if beyond:
        corner = (drawing.kv_length, 0)
        axes.add_patch(
            Rectangle(corner, beyond, drawing.len_q, fc="white", ec=MUTED, hatch="////", lw=0.8)
        )
    offset = drawing.band.resolve(drawing.len_q, KEYS).offset or 0
    for row in range(drawing.len_q):
        if row + offset < drawing.kv_length:
            cell = (row + offset + 0.07, row + 0.07)
            axes.add_patch(Rectangle(cell, 0.86, 0.86, fill=False, ec=ORANGE, lw=1.8))
    draw_frame(axes, drawing)


def draw_cells(axes: Axes, weights: Tensor, full: float = 1.0) -> None:
    """Cells of [queries, keys], from pale where the weight is 0 to blue where it is `full`."""
    axes.pcolormesh(
        weights.float().numpy(),
        cmap=SEEN,
        vmin=0,
        vmax=full,
        edgecolors="white",
        linewidth=1.6,
    )


def draw_frame(axes: Axes, drawing: Drawing) -> None:
    """Queries and keys numbered at the grid's edges, and the words of the drawing around it."""
    axes.set_xlim(0, KEYS)
    axes.set_ylim(drawing.len_q, 0)
    axes.set_aspect("equal")
    axes.set_anchor("N")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    for axis, count in ((axes.xaxis, KEYS), (axes.yaxis, drawing.len_q)):
        axis.set_major_locator(FixedLocator([i + 0.5 for i in range(count)]))
        axis.set_major_formatter(lambda x, _: f"{int(x)}")
    axes.set_xlabel("key j", fontsize=9, color=MUTED)
    axes.set_ylabel("query i", fontsize=9, color=MUTED)
    axes.tick_params(length=0, labelsize=8, colors=MUTED)
    axes.spines[:].set_visible(False)
    _write(axes, drawing.title, (0, 1), 44, color=INK, fontsize=11.5, fontweight="bold")
    _write(axes, drawing.code, (0, 1), 29, color=INK, fontsize=9.5, family="monospace")
    _write(axes, drawing.note, (0, 0), -12, color=MUTED, fontsize=10, va="top", linespacing=1.5)


def _write(axes: Axes, text: str, corner: tuple[int, int], points: float, **style: Any) -> None:
    """Text that begins `points` above a corner of the axes."""
    offset = (0, points)
    axes.annotate(text, corner, offset, "axes fraction", textcoords="offset points", **style)
