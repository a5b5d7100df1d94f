"""Drawings of gradients: numbers in, inline SVG out, in the manner of plots.py (colours and fonts are the page's)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from matplotlib.ticker import LogLocator, NullLocator

from vla_mini.pages.plots import COLOURS, CYCLE, STYLE, inline_svg


class Depth(NamedTuple):
    """A layer of the flow plot: the ratio of its gradient's norm to its weights', and whether that is flagged."""

    name: str
    ratio: float
    flagged: bool


class Box(NamedTuple):
    """A component in the drawing of the graph: its name, a line below it, and what is in it."""

    name: str
    caption: str
    lines: Sequence[str] = ()


def flow_plot(name: str, layers: Sequence[Depth], *, vanishing: float, exploding: float) -> str:
    """A dot for each layer, the first at the top, between the two thresholds; a colour for each component."""
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(9, 0.8 + 0.235 * len(layers)), layout="constrained")
        axes = figure.subplots()
        components = list(dict.fromkeys(layer.name.partition(".")[0] for layer in layers))
        axes.set_xscale("log")
        least = vanishing / 10  # where what is smaller still, or zero, is drawn
        ratios = [
            min(max(layer.ratio, least), 10 * exploding) if np.isfinite(layer.ratio) else 10 * exploding for layer in layers
        ]
        for row, (layer, ratio) in enumerate(zip(layers, ratios, strict=True)):
            colour = COLOURS[CYCLE[components.index(layer.name.partition(".")[0]) % len(CYCLE)]]
            axes.plot([least, ratio], [row, row], color=colour, linewidth=0.8, alpha=0.35)
            axes.plot(
                [ratio], [row], "o", color=COLOURS["red"] if layer.flagged else colour, markersize=7 if layer.flagged else 5
            )
        for edge, side in ((vanishing, "vanishing"), (exploding, "exploding")):
            axes.axvline(edge, color=COLOURS["red"], linewidth=0.9, linestyle=(0, (3, 3)))
            place = {"horizontalalignment": "right" if side == "vanishing" else "left", "verticalalignment": "bottom"}
            axes.annotate(
                side,
                (edge, -0.7),
                (-4 if side == "vanishing" else 4, 2),
                textcoords="offset points",
                color=COLOURS["red"],
                **place,
            )
        axes.set_xlim(least, 10 * exploding)
        axes.set_ylim(len(layers) - 0.4, -1.2)
        axes.set_yticks(range(len(layers)), [layer.name for layer in layers])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.xaxis.set_major_locator(LogLocator(numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("gradient norm / weight norm")
        return inline_svg(figure, name=name)


def histogram(name: str, values: Sequence[float], *, label: str, mark: float, marked: str) -> str:
    """How often each size occurs, and one value marked by a line."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.subplots()
        axes.hist(values, bins=30, color=COLOURS["blue"], alpha=0.75)
        axes.axvline(mark, color=COLOURS["amber"])
        axes.annotate(marked, (mark, axes.get_ylim()[1]), (5, -10), textcoords="offset points", color=COLOURS["amber"])
        axes.set_xlabel(label)
        axes.set_ylabel("samples")
        axes.set_xlim(left=0)
        return inline_svg(figure, name=name)


def matrix(name: str, values: np.ndarray, *, rows: Mapping[str, int], columns: Mapping[str, int]) -> str:
    """The magnitudes of a matrix as shades, on a logarithmic scale of three decades; `rows` and `columns` name blocks of
    so many, in their order."""
    magnitudes = np.abs(values)
    most = max(float(magnitudes.max()), np.finfo(np.float32).tiny)
    shades = np.log10(np.maximum(magnitudes / most, 1e-3))
    with matplotlib.rc_context(STYLE | {"axes.grid": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(9, 2.6), layout="constrained")
        axes = figure.subplots()
        picture = axes.imshow(shades, aspect="auto", cmap="magma", interpolation="nearest", vmin=-3, vmax=0)
        axes.set_xticks(*_block_ticks(columns))
        axes.set_yticks(*_block_ticks(rows))
        axes.tick_params(length=0)
        for end in np.cumsum(list(rows.values()))[:-1]:
            axes.axhline(end - 0.5, color=COLOURS["card"], linewidth=1.2)
        for end in np.cumsum(list(columns.values()))[:-1]:
            axes.axvline(end - 0.5, color=COLOURS["card"], linewidth=1.2)
        bar = figure.colorbar(picture, ax=axes, ticks=[-3, -2, -1, 0], pad=0.01, fraction=0.02)
        bar.ax.set_yticklabels([f"{most * 10.0**power:.1g}" for power in (-3, -2, -1, 0)])
        bar.outline.set_visible(False)
        return inline_svg(figure, name=name)


def _block_ticks(blocks: Mapping[str, int]) -> tuple[np.ndarray, list[str]]:
    ends = np.cumsum(list(blocks.values()))
    return ends - np.array(list(blocks.values())) / 2 - 0.5, list(blocks)


# ---- the graph: boxes in columns, from left to right as the data flows

WIDTH, GAP, LINE, SPACE = 2.35, 0.8, 0.27, 0.35


def graph_drawing(name: str, boxes: Sequence[Box], edges: Sequence[tuple[str, str]]) -> str:
    """Boxes joined by arrows. A box stands one column to the right of the last that enters it."""
    column = _columns([box.name for box in boxes], edges)
    height = {box.name: LINE * (2.2 + len(box.lines)) for box in boxes}
    middle = _middles(boxes, edges, column=column, height=height)
    right = max(column.values()) * (WIDTH + GAP) + WIDTH
    bottom = min(middle[n] - height[n] / 2 for n in middle) - 0.1
    top = max(middle[n] + height[n] / 2 for n in middle) + 0.1
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(9.5, 9.5 * (top - bottom) / right))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-0.05, right + 0.05)
        axes.set_ylim(bottom, top)
        entering = {box.name: [source for source, target in edges if target == box.name] for box in boxes}
        for target, sources in entering.items():
            for place, source in enumerate(sorted(sources, key=lambda n: -middle[n]), 1):  # spread along the box's side
                end = middle[target] + height[target] * (0.5 - place / (len(sources) + 1)) * min(1, 0.5 * (len(sources) - 1))
                start = column[source] * (WIDTH + GAP) + WIDTH, middle[source]
                _draw_arrow(axes, start, (column[target] * (WIDTH + GAP), end))
        for box in boxes:
            _draw_box(axes, box, x=column[box.name] * (WIDTH + GAP), y=middle[box.name], height=height[box.name])
        return inline_svg(figure, name=name)


def _columns(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The length of the longest way to each box."""
    column = dict.fromkeys(names, 0)
    for _ in names:
        for source, target in edges:
            column[target] = max(column[target], column[source] + 1)
    return column


def _middles(
    boxes: Sequence[Box], edges: Sequence[tuple[str, str]], *, column: Mapping[str, int], height: Mapping[str, float]
) -> dict[str, float]:
    """The height at which each box stands: in a column, in the order of what enters them, centred."""
    middle: dict[str, float] = {}
    for number in range(max(column.values()) + 1):
        inside = [box.name for box in boxes if column[box.name] == number]
        entering = {n: [middle[source] for source, target in edges if target == n] or [0.0] for n in inside}
        wanted = {n: sum(entering[n]) / len(entering[n]) for n in inside}
        inside.sort(key=lambda n: -wanted[n])  # a stable order for equals
        total = sum(height[n] for n in inside) + SPACE * (len(inside) - 1)
        y = total / 2 + (sum(wanted.values()) / len(inside) if number else 0.0)
        for n in inside:
            middle[n] = y - height[n] / 2
            y -= height[n] + SPACE
    return middle


def _draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    (x0, y0), (x1, y1) = start, end
    bend = 0.6 * GAP
    path = Curve([(x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1 - 0.08, y1)], [Curve.MOVETO, *[Curve.CURVE4] * 3])
    axes.add_patch(PathPatch(path, facecolor="none", edgecolor=COLOURS["quiet"], linewidth=1.2))
    axes.fill([x1, x1 - 0.14, x1 - 0.14], [y1, y1 + 0.07, y1 - 0.07], color=COLOURS["quiet"], linewidth=0)


def _draw_box(axes: Axes, box: Box, *, x: float, y: float, height: float) -> None:
    shape = FancyBboxPatch(
        (x, y - height / 2), WIDTH, height, boxstyle="round,pad=0,rounding_size=0.12", linewidth=1.1,
        facecolor=COLOURS["card"], edgecolor=COLOURS["blue"] if box.lines or box.caption else COLOURS["rule"],
    )  # fmt: skip
    axes.add_patch(shape)
    top = y + height / 2 - 0.78 * LINE
    axes.text(x + 0.14, top, box.name, color=COLOURS["ink"], fontsize=8.5, fontweight="bold", verticalalignment="center")
    for number, line in enumerate([box.caption, *box.lines], 1):
        axes.text(x + 0.14, top - number * LINE, line, color=COLOURS["quiet"], fontsize=7, verticalalignment="center")
