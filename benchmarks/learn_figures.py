"""The figures of docs/learn, each from the numbers that a page has computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, MaxNLocator
from torch import Tensor

from fused_attention import Band

from .heat_maps import draw_weights, without_frame
from .mask_pictures import KEYS, Drawing, draw_cells, draw_frame, draw_mask
from .style import BLUE, INK, MUTED, ORANGE, PALE

LONGEST_TRAINED = 12  # digits, on the pages 1 and 2


def lengths_figure(without: Mapping[int, float], with_attention: Mapping[int, float]) -> Figure:
    """Accuracy against the length, of the two encoder-decoders."""
    figure, axes = one_panel((6.2, 3.2))
    last = max(without)
    axes.axvspan(LONGEST_TRAINED + 0.5, last + 0.5, color=PALE, zorder=0)
    _note(axes, (LONGEST_TRAINED + 0.7, 0.87), "longer than\nin training")
    for values, color, label in (
        (with_attention, BLUE, "with attention"),
        (without, ORANGE, "one vector"),
    ):
        axes.plot(list(values), list(values.values()), color=color, marker="o", markersize=4)
        name_line(axes, (last, values[last]), label, color)
    axes.set_xlim(0.5, last + 0.5)
    axes.set_ylim(-0.04, 1.04)
    axes.xaxis.set_major_locator(FixedLocator([1, 4, 8, 12, 16]))
    axes.set_xlabel("digits in the string", color=INK)
    axes.set_ylabel("strings without a mistake", color=INK)
    return figure


def alignment_figure(weights: Tensor, source: Tensor) -> Figure:
    """The first of the weights [batch, step, source position] of `source` [batch, length]."""
    figure = Figure(figsize=(3.6, 3.5), layout="constrained")
    axes = figure.subplots()
    labels = [str(digit) for digit in source[0].tolist()]
    draw_weights(axes, weights[0], labels, labels)
    axes.set_xlabel("source digit", color=INK)
    axes.set_ylabel("digit being said", color=INK)
    return figure


def dates_figure(across: Tensor, asked: str, answer: str) -> Figure:
    """Weights [symbol of the answer, symbol of the source]."""
    figure = Figure(figsize=(5.6, 3.45), layout="constrained")
    axes = figure.subplots()
    draw_weights(axes, across, list(answer), list(asked))
    axes.set_xlabel("source", color=INK)
    axes.set_ylabel("answer", color=INK)
    return figure


def counting_figure(by_head: Tensor, read: str) -> Figure:
    """Weights [layers * heads, query, key] of two layers, one above the other."""
    figure = Figure(figsize=(10.2, 5.4), layout="constrained")
    heads = len(by_head) // 2
    grid = figure.subplots(2, heads)
    for number, (axes, weights) in enumerate(zip(grid.flat, by_head, strict=True)):
        draw_weights(axes, weights, list(read), list(read), lines=0.2)
        axes.tick_params(labelsize=5.5, pad=1)
        title = f"layer {number // heads + 1}, head {number % heads + 1}"
        axes.set_xlabel(title, fontsize=9, color=INK)
    return figure


def scale_figure(
    scaled: Mapping[int, tuple[float, float]], unscaled: Mapping[int, tuple[float, float]]
) -> Figure:
    """The largest weight, and the size of the gradient, against the head's size."""
    figure = Figure(figsize=(8.6, 3.1), layout="constrained")
    titles = ("largest of 64 weights", "gradient of the weights in their scores")
    for which, (axes, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        _plain(axes)
        axes.set_title(title, fontsize=10, color=INK, loc="left")
        axes.set_xscale("log", base=2)
        for values, color, label in (
            (scaled, BLUE, "with the scale"),
            (unscaled, ORANGE, "without"),
        ):
            sizes, heights = list(values), [pair[which] for pair in values.values()]
            axes.plot(sizes, heights, color=color, marker="o", markersize=4)
            name_line(axes, (sizes[-1], heights[-1]), label, color)
        axes.xaxis.set_major_locator(FixedLocator(list(scaled)))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("head_dim", color=INK)
    return figure


def positions_figure(variants: Mapping[str, Tensor]) -> Figure:
    """Above the vectors themselves, below their dot products."""
    figure = Figure(figsize=(8.2, 5.2), layout="constrained")
    grid = figure.subplots(2, len(variants), height_ratios=(1, 1.6))
    shown = 100
    limit = max((P[:shown] @ P[:shown].T).max().item() for P in variants.values())
    for (name, P), vectors, products in zip(variants.items(), *grid, strict=True):  # noqa: N806
        waves = P[:shown].T.numpy()
        vectors.imshow(waves, "RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        vectors.set_title(name, fontsize=11, color=INK, loc="left", fontweight="bold")
        vectors.set_ylabel("channel", color=INK)
        dots = (P[:shown] @ P[:shown].T).numpy()
        image = products.imshow(dots, "RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        products.set_ylabel("position", color=INK)
        for axes in (vectors, products):
            axes.set_xlabel("position", color=INK)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            without_frame(axes)
    bar = figure.colorbar(image, ax=list(grid[1]), shrink=0.9)
    bar.set_label("dot product of two positions", color=INK)
    return figure


def residual_figure(plain: Sequence[float], residual: Sequence[float]) -> Figure:
    """How much the tokens still differ, layer by layer."""
    figure, axes = one_panel((6.2, 3.0))
    for values, color, label in (
        (residual, BLUE, "with residual"),
        (plain, ORANGE, "without"),
    ):
        axes.plot(range(len(values)), values, color=color, marker="o", markersize=3.5)
        name_line(axes, (len(values) - 1, values[-1]), label, color)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlim(-0.5, len(plain) - 0.5)
    axes.set_xlabel("layers", color=INK)
    axes.set_ylabel("spread of the tokens", color=INK)
    return figure


def local_figure(local_p: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Figure:
    """Global and local masks, and the weights of local-p for five steps of equal scores."""
    drawings = (
        Drawing("global", "attention(q, k, v)", Band.full()),
        Drawing("global, causal", "causal=True", Band.causal()),
        Drawing("sliding window", "window=(3, 0)", Band.window(3, 0)),
        Drawing("sliding window, both sides", "window=(2, 2)", Band.window(2, 2)),
        Drawing(
            "Luong's local-m", "band=Band.window(2, 2, offset=0)", Band.window(2, 2, 0), len_q=7
        ),
    )
    figure = Figure(figsize=(10.2, 7.8), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.1))
    *panels, last = figure.subplots(2, 3).flat
    for axes, drawing in zip(panels, drawings, strict=True):
        draw_mask(axes, drawing)
    centre = torch.tensor([0.4, 2.2, 2.9, 4.6, 4.8, 7.3, 8.6])
    equal = torch.zeros(len(centre), 1), torch.zeros(KEYS, 1)
    draw_cells(last, local_p(*equal, centre, 2), full=0.25)
    rows = torch.arange(len(centre))
    last.plot(centre + 0.5, rows + 0.5, "o", color=ORANGE, markersize=6)
    note = "Dots: the predicted centres.\nDarker: more weight, for equal scores."
    caption = ("Luong's local-p", "centre predicted per step", Band.full())
    draw_frame(last, Drawing(*caption, len_q=len(centre), note=note))
    return figure


def one_panel(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    """Two spines, a light grid."""
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def name_line(axes: Axes, end: tuple[float, float], label: str, color: str) -> None:
    """Write a line's name behind its last point."""
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9.5}
    axes.annotate(label, end, (8, 0), color=color, annotation_clip=False, **style)


def _note(axes: Axes, place: tuple[float, float], text: str) -> None:
    axes.text(*place, text, color=MUTED, fontsize=8.5, va="bottom")
