"""Drawings of gradients: numbers in, inline SVG out, in the manner of plots.py (colours and fonts are the page's)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vla_mini.pages.plots import COLOURS, STYLE, inline_svg

CALM = ("blue", "amber", "green", "violet", "teal", "quiet", "ink")  # for what is not flagged: no red


class Depth(NamedTuple):
    """A layer of the flow plot: the ratio of its gradient's norm to its weights', and whether that is flagged."""

    name: str
    ratio: float
    flagged: bool


class Box(NamedTuple):
    """A component in the drawing of the graph: its name, and lines about it; an input has none."""

    name: str
    lines: Sequence[str] = ()


def flow_plot(name: str, layers: Sequence[Depth], *, vanishing: float, exploding: float) -> str:
    """A dot for each layer, the first at the top, between the two thresholds; a colour for each component."""
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(9, 0.8 + 0.235 * len(layers)), layout="constrained")
        axes = figure.subplots()
        components = list(dict.fromkeys(layer.name.partition(".")[0] for layer in layers))
        axes.set_xscale("log")
        least, most = vanishing / 10, 10 * exploding  # what lies beyond is drawn there
        for row, layer in enumerate(layers):
            place = components.index(layer.name.partition(".")[0]) % len(CALM)
            colour = COLOURS["red" if layer.flagged else CALM[place]]
            ratio = min(max(layer.ratio, least), most) if layer.ratio < np.inf else most
            axes.plot([least, ratio], [row, row], color=colour, linewidth=0.8, alpha=0.35)
            axes.plot([ratio], [row], "o", color=colour, markersize=7 if layer.flagged else 5)
        for edge, word, side, shift in ((vanishing, "vanishing", "right", -4), (exploding, "exploding", "left", 4)):
            axes.axvline(edge, color=COLOURS["red"], linewidth=0.9, linestyle=(0, (3, 3)))
            place = {"textcoords": "offset points", "horizontalalignment": side}
            axes.annotate(word, (edge, -0.9), (shift, 0), color=COLOURS["red"], **place)
        axes.set_xlim(least, most)
        axes.set_ylim(len(layers) - 0.4, -1.2)
        axes.set_yticks(range(len(layers)), [layer.name for layer in layers])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.xaxis.set_major_locator(LogLocator(numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("gradient norm / weight norm")
        return inline_svg(figure, name=name)


def histogram(name: str, values: Sequence[float], *, label: str, mark: float, marked: str) -> str:
    """How often each size occurs, on a logarithmic scale, and one value marked by a line."""
    positive = [value for value in values if 0 < value < np.inf]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        if positive:
            edges = np.geomspace(0.99 * min(positive), 1.01 * max(positive), 41)
            axes.hist(positive, bins=edges, color=COLOURS["blue"], alpha=0.75)
        if mark > 0:
            axes.axvline(mark, color=COLOURS["amber"])
            axes.annotate(
                marked, (mark, 1), (5, -3), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                color=COLOURS["amber"], verticalalignment="top",
            )  # fmt: skip
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel(label)
        axes.set_ylabel("samples")
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


# ---- the graph: boxes in columns, from left to right as the data flows; lengths in points

NAME, TEXT = 9.0, 7.5  # font sizes
LINE, PADDING = 11.0, 8.0
GAP, SPACE = 38.0, 14.0  # between columns, between boxes of a column


def graph_drawing(name: str, boxes: Sequence[Box], edges: Sequence[tuple[str, str]]) -> str:
    """Boxes joined by arrows. A box stands one column to the right of the last that enters it."""
    ways = _ways([box.name for box in boxes], edges)
    places = _arrange(boxes, ways)
    right = max(place.x + place.width for place in places.values())
    top = max(place.y + place.height / 2 for place in places.values())
    bottom = min(place.y - place.height / 2 for place in places.values())
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=((right + 4) / 72, (top - bottom + 4) / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-2, right + 2)
        axes.set_ylim(bottom - 2, top + 2)
        for box in boxes:
            entering = sorted((way for way in ways if way[-1] == box.name), key=lambda way: -places[way[-2]].y)
            for number, way in enumerate(entering, 1):  # spread along the box's side
                end = places[box.name].y + 0.8 * places[box.name].height * (0.5 - number / (len(entering) + 1))
                _draw_arrow(axes, [places[stop] for stop in way], end)
            _draw_box(axes, box, places[box.name])
        return inline_svg(figure, name=name)


class _Place(NamedTuple):
    x: float  # of the left side
    y: float  # of the middle
    width: float
    height: float


def _ways(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[tuple[str, ...], list[int]]:
    """Each edge as what it passes, a gap in every column between its ends, and the columns."""
    column = _columns(names, edges)
    ways = {}
    for source, target in edges:
        gaps = [f"{source} {number} {target}" for number in range(column[source] + 1, column[target])]
        ways[source, *gaps, target] = list(range(column[source], column[target] + 1))
    return ways


def _arrange(boxes: Sequence[Box], ways: Mapping[tuple[str, ...], list[int]]) -> dict[str, _Place]:
    """Where each box, and each gap, stands: in its column, in the order of what enters them, centred on that."""
    stops = {box.name: box for box in boxes} | {gap: Box(gap) for way in ways for gap in way[1:-1]}
    column = dict.fromkeys(stops, 0) | {stop: n for way, numbers in ways.items() for stop, n in zip(way, numbers, strict=True)}
    size = {box.name: 0.62 * NAME * len(box.name) for box in boxes}
    size |= {box.name: max(size[box.name], *(0.56 * TEXT * len(line) for line in box.lines)) for box in boxes if box.lines}
    places: dict[str, _Place] = {}
    x = 0.0
    for number in range(max(column.values()) + 1):
        inside = [stop for stop in stops if column[stop] == number]
        entering = {stop: [places[a].y for way in ways for a, b in pairwise(way) if b == stop] or [0.0] for stop in inside}
        wanted = {stop: sum(ys) / len(ys) for stop, ys in entering.items()}
        inside.sort(key=lambda stop: -wanted[stop])  # a stable order for equals
        height = {stop: LINE * (1 + len(stops[stop].lines)) + PADDING if stop in size else LINE for stop in inside}
        width = max(size.get(stop, 0.0) for stop in inside) + 2 * PADDING
        y = (sum(height.values()) + SPACE * (len(inside) - 1)) / 2 + sum(wanted.values()) / len(inside)
        for stop in inside:
            places[stop] = _Place(x, y - height[stop] / 2, width, height[stop])
            y -= height[stop] + SPACE
        x += width + GAP
    return places


def _columns(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The length of the longest way to each box; a box that nothing enters stands just before what it enters."""
    column = dict.fromkeys(names, 0)
    for _ in names:
        for source, target in edges:
            column[target] = max(column[target], column[source] + 1)
    for first in set(names) - {target for _, target in edges}:
        column[first] = min((column[target] - 1 for source, target in edges if source == first), default=0)
    return column


def _draw_arrow(axes: Axes, stops: Sequence[_Place], end: float) -> None:
    """From the first stop's right side, straight through the gaps, to the last one's left side at the height `end`."""
    points, kinds = [(stops[0].x + stops[0].width, stops[0].y)], [Path.MOVETO]
    for stop in stops[1:]:
        (x0, y0), (x1, y1) = points[-1], (stop.x, stop.y if stop is not stops[-1] else end)
        points += [(x0 + 0.6 * GAP, y0), (x1 - 0.6 * GAP, y1), (x1, y1), (x1 + stop.width, y1)]
        kinds += [Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
    axes.add_patch(PathPatch(Path(points[:-1], kinds[:-1]), facecolor="none", edgecolor=COLOURS["quiet"], linewidth=1.1))
    x = stops[-1].x
    axes.fill([x, x - 6, x - 6], [end, end + 3, end - 3], color=COLOURS["quiet"], linewidth=0)


def _draw_box(axes: Axes, box: Box, place: _Place) -> None:
    shape = FancyBboxPatch(
        (place.x, place.y - place.height / 2),
        place.width,
        place.height,
        boxstyle="round,pad=0,rounding_size=5",
        linewidth=1.1,
        facecolor=COLOURS["card"],
        edgecolor=COLOURS["blue" if box.lines else "rule"],
    )
    axes.add_patch(shape)
    left, first = place.x + PADDING, place.y + (place.height - PADDING - LINE) / 2
    text = {"verticalalignment": "center_baseline"}
    axes.text(left, first, box.name, color=COLOURS["ink"], fontsize=NAME, fontweight="bold", **text)
    for number, line in enumerate(box.lines, 1):
        axes.text(left, first - number * LINE, line, color=COLOURS["quiet"], fontsize=TEXT, **text)
