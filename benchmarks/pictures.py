"""Pictures of a report: time and memory against length, and the masks. Needs matplotlib."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .cases import Case
from .contenders import FLEX, LABELS, NAIVE, OURS, SDPA
from .mask_pictures import masks_figure
from .memory import MIB, MemoryResult
from .run import Report
from .style import BLUE, DPI, GREEN, INK, MUTED, ORANGE, PURPLE
from .table import machine_line

STYLES: dict[str, dict[str, Any]] = {
    # Ours is broad and lies below, so that a peer's line on top of it still shows.
    OURS: {"color": BLUE, "marker": "o", "markersize": 8, "linewidth": 4, "zorder": 2},
    NAIVE: {"color": ORANGE, "marker": "s", "markersize": 5, "linewidth": 1.6, "zorder": 3},
    SDPA: {"color": GREEN, "marker": "^", "markersize": 5, "linewidth": 1.6, "zorder": 3},
    FLEX: {"color": PURPLE, "marker": "v", "markersize": 5, "linewidth": 1.6, "zorder": 3},
}
LEAST = "inputs and outputs"
LINE_GAP = 0.08  # least distance of two line labels, as a share of the axis' height
TOP_NAME = 0.97  # names stay within the axis' height
PANEL_INCHES = (5.4, 4.0)

Points = list[tuple[float, float]]


@dataclass
class Panel:
    """One diagram: its title and the (length, value) points of each line."""

    title: str
    lines: dict[str, Points] = field(default_factory=dict)

    def add(self, line: str, length: int, value: float) -> None:
        self.lines.setdefault(line, []).append((length, value))


def save_pictures(report: Report, folder: Path) -> list[Path]:
    """Write time.png and memory.png, as far as the report has lines for them, and masks.png."""
    drawings: dict[str, Callable[[], Figure | None]] = {
        "time.png": lambda: time_figure(report),
        "memory.png": lambda: memory_figure(report),
        "masks.png": masks_figure,
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in drawings.items():
        figure = draw()
        if figure is not None:
            figure.savefig(folder / name, dpi=DPI)
            written.append(folder / name)
    return written


def time_figure(report: Report) -> Figure | None:
    """Milliseconds against length: a panel for each series, dtype, pass and thread count."""
    panels: dict[str, Panel] = {}
    for result in report["results"]:
        case = Case.from_dict(result["case"])
        if not case.series:
            continue
        threads = result["threads"]
        title = (
            f"{case.series}, {result['direction']}\n{case.heads_q} heads, D {case.head_dim}, "
            f"{case.dtype}, {threads} thread{'s' if threads > 1 else ''}"
        )
        panel = panels.setdefault(title, Panel(title))
        for name, entry in result["contenders"].items():
            if entry["status"] == "ok":
                panel.add(name, case.len_q, entry["median_s"] * 1e3)
    return curves_figure("Time of one call", "milliseconds", list(panels.values()), report)


def memory_figure(report: Report) -> Figure | None:
    """MiB of a call with its inputs against length: a panel for each pass."""
    panels: dict[bool, Panel] = {}
    for values in report["memory"]:
        result = MemoryResult.from_dict(values)
        case = result.case
        what = "forward and backward" if case.backward else "forward"
        title = f"{what}\n{case.heads_q} head, D {case.head_dim}, {case.dtype}"
        panel = panels.setdefault(case.backward, Panel(title))
        if result.total_bytes is not None:
            panel.add(result.contender, case.len_q, result.total_bytes / MIB)
        if result.contender == OURS:
            panel.add(LEAST, case.len_q, (result.input_bytes + result.output_bytes) / MIB)
    return curves_figure("Peak memory of one call", "MiB", list(panels.values()), report)


def curves_figure(title: str, unit: str, panels: list[Panel], report: Report) -> Figure | None:
    """Log-log diagrams side by side, two in a row; None when no panel has a line."""
    panels = [panel for panel in panels if any(len(p) > 1 for p in panel.lines.values())]
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns + 0.4, height * rows + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=14, fontweight="bold", color=INK)
    figure.supxlabel(machine_line(report), fontsize=7.5, color=MUTED)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw_curves(axes, panel, unit)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    return figure


def draw_curves(axes: Axes, panel: Panel, unit: str) -> None:
    """One panel, its lines named at their right ends."""
    axes.set_title(panel.title, fontsize=10, color=INK, loc="left")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for name, points in panel.lines.items():
        lengths, values = zip(*points, strict=True)
        if name == LEAST:
            axes.plot(lengths, values, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.4)
        else:
            axes.plot(lengths, values, **STYLES[name])
    ticks = sorted({x for points in panel.lines.values() for x, _ in points})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}".replace(",", " ")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(base=10, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}".replace(",", " ")))
    axes.set_xlabel("length, tokens", color=INK)
    axes.set_ylabel(unit, color=INK)
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    _name_lines(axes, panel)


def _name_lines(axes: Axes, panel: Panel) -> None:
    """Write each line's name beside its last point, moved apart where two would overlap."""
    bottom, top = (math.log(limit) for limit in axes.get_ylim())
    longest = max(length for points in panel.lines.values() for length, _ in points)
    heights = []
    for points in panel.lines.values():
        share = (math.log(_value_at(longest, points)) - bottom) / (top - bottom)
        heights.append(min(share, TOP_NAME))
    for (name, points), height in zip(panel.lines.items(), _spread(heights), strict=True):
        axes.annotate(
            LABELS.get(name, name),
            xy=points[-1],
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=STYLES[name]["color"] if name in STYLES else MUTED,
            fontsize=9.5,
            fontweight="bold" if name == OURS else "normal",
            va="center",
            annotation_clip=False,
        )


def _value_at(length: float, points: Points) -> float:
    """The line's last value; for a line that ends before `length`, where it was heading."""
    (x0, y0), (x1, y1) = points[-2:] if len(points) > 1 else points * 2
    if x1 == length or x0 == x1:
        return y1
    slope = math.log(y1 / y0) / math.log(x1 / x0)
    return float(y1 * (length / x1) ** slope)


def _spread(heights: list[float]) -> list[float]:
    """The heights, pushed apart pair by pair until LINE_GAP lies between any two."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for _ in range(100):
        for low, high in itertools.pairwise(order):
            overlap = LINE_GAP - (moved[high] - moved[low])
            if overlap > 0:
                moved[low] -= overlap / 2
                moved[high] += overlap / 2
    return moved
