"""Matplotlib plots as inline SVGs: a light grid, no box, and a curve's name at its end instead of a legend.

Colours and fonts are written as CSS variables (`var(--blue)`, `var(--sans)`): the page that holds a plot defines them, and
one picture serves light and dark screens.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LogNorm, get_named_colors_mapping
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from vla_mini.autograd.flow import EXPLODING, VANISHING
from vla_mini.evaluation.curves import Curve

# The colours of the page: matplotlib draws "page:ink" as a placeholder, which `inline_svg` replaces by the CSS variable "ink".
PAGE_COLOURS = ("ink", "quiet", "rule", "card", "blue", "green", "red", "amber", "violet", "teal")
PLACEHOLDERS = {name: f"#0{index:x}0{index:x}0{index:x}" for index, name in enumerate(PAGE_COLOURS, start=1)}
get_named_colors_mapping().update({f"page:{name}": placeholder for name, placeholder in PLACEHOLDERS.items()})
STYLE = "vla_mini.reports.plots"  # plots.mplstyle

CYCLE = ("blue", "amber", "green", "violet", "red", "teal")
DASHES = ("-", "--", ":")  # for more curves than there are colours
NEUTRAL = ("blue", "amber", "green", "violet", "teal", "quiet", "ink")  # red is for what is flagged
MANY = 60  # points of one curve: too many to mark each
LABEL_HEIGHT = 0.075  # of a curve's name, as a fraction of the axes' height
# Of a grid of small plots, in points: its width, the gap beside a plot, the space above it, its height, and that of a number.
GRID_WIDTH, GRID_GAP, GRID_TITLE, GRID_HEIGHT, GRID_NUMBER = 648.0, 16.0, 22.0, 42.0, 34.0
TIME_SHARE = 0.68  # of a plot's width: values over time; the rest is their histogram
ENVELOPE, BINS = 40, 28


class Panel(NamedTuple):
    """One plot: the curves of one name have the same colour."""

    title: str
    label: str  # of the horizontal axis
    curves: Mapping[str, Sequence[Curve]]
    # Values on the percent scale are fractions from 0 to 1; "zero" is linear and begins at 0.
    scale: Literal["linear", "zero", "log", "percent"] = "linear"
    smooth: bool = False  # draw a curve of many points as its running mean

    @property
    def logarithmic(self) -> bool:
        """Whether the vertical axis is: a negative value, as of a log-likelihood, has no logarithm."""
        values = [value for curves in self.curves.values() for curve in curves for value in curve.values]
        return self.scale == "log" and min(values, default=-1) >= 0 < max(values)


@style.context(STYLE)
def line_plot(name: str, panels: Sequence[Panel], *, columns: int = 1) -> Markup:
    """The panels, `columns` side by side, with titles if there are several. `name` is unique on its page."""
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 2.8 * rows))
    for position, panel in enumerate(panels, start=1):
        title = panel.title if len(panels) > 1 else ""
        axes = figure.add_subplot(rows, columns, position, title=title, xlabel=panel.label)
        ends = _draw_curves(axes, panel)
        if len(ends) > 1:
            _label_ends(axes, ends)
    return inline_svg(figure, name=name)


def _draw_curves(axes: Axes, panel: Panel) -> dict[str, Line2D]:
    """Draws all curves; returns the first line of each name."""
    if panel.logarithmic:
        axes.set_yscale("log")
        _set_log_ticks(axes.yaxis)
    if panel.scale == "percent":
        axes.set_ylim(-0.02, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    lines: dict[str, Line2D] = {}
    single = all(len(curves) <= 1 for curves in panel.curves.values())
    for (name, curves), (dash, colour) in zip(panel.curves.items(), cycle(product(DASHES, CYCLE)), strict=False):
        for curve in curves:
            line_style = {"color": f"page:{colour}", "linestyle": dash}
            many = len(curve.steps) > MANY
            if panel.smooth and many:
                if single:
                    axes.plot(*curve, **line_style, linewidth=0.8, alpha=0.3)
                curve = Curve(curve.steps, _running_mean(curve.values, window=len(curve.values) // 40 * 2 + 1))
            (line,) = axes.plot(*curve, **line_style, marker=None if many else "o", markersize=2.5)
            if not panel.logarithmic or curve.values[-1] > 0:  # a zero is nowhere on the axis, and nor is its name
                lines.setdefault(name, line)
    axes.set_xlim(left=0)
    if panel.scale == "zero":
        axes.set_ylim(bottom=0)
    return lines


def _set_log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of each decade, written as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _running_mean(values: Sequence[float], *, window: int) -> np.ndarray:
    """Centred, over `window` (odd) values; at the ends, over those that there are."""
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def _label_ends(axes: Axes, lines: Mapping[str, Line2D]) -> None:
    """Write each name beside the end of its line; names that would overlap are moved apart."""
    axes.autoscale_view()  # determines the limits by which the names are placed
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = {name: to_axes.transform(line.get_xydata()[-1])[1] for name, line in lines.items()}
    names, shifts = sorted(ends, key=ends.__getitem__), LABEL_HEIGHT * np.arange(len(ends))
    heights = np.maximum.accumulate([ends[name] for name in names] - shifts) + shifts
    heights = np.minimum(heights, 1 - shifts[::-1])  # none above the axes
    for name, height in zip(names, heights, strict=True):
        axes.text(1.02, height, name, color=lines[name].get_color(), transform=axes.transAxes, verticalalignment="center")


@style.context([STYLE, {"axes.grid.axis": "x"}])
def flow_plot(name: str, ratios: Mapping[str, float]) -> Markup:
    """Layer -> ratio of gradient norm to weight norm: a dot each, the first at the top; red where the ratio is flagged."""
    least, most = VANISHING / 10, 10 * EXPLODING  # ratios beyond, and NaN, are drawn at these ends
    components = list(dict.fromkeys(layer.partition(".")[0] for layer in ratios))
    figure = Figure(figsize=(9, 0.8 + 0.235 * len(ratios)))
    axes = figure.subplots()
    for y, (layer, ratio) in enumerate(ratios.items()):
        flagged = not VANISHING <= ratio <= EXPLODING
        colour = NEUTRAL[components.index(layer.partition(".")[0]) % len(NEUTRAL)]
        line_style = {"color": "page:red" if flagged else f"page:{colour}"}
        x = np.nan_to_num(np.clip(ratio, least, most), nan=most)
        axes.hlines(y, least, x, **line_style, linewidth=0.8, alpha=0.35)
        axes.plot(x, y, "o", **line_style, markersize=7 if flagged else 5)
    for threshold, word, side, shift in ((VANISHING, "vanishing", "right", -4), (EXPLODING, "exploding", "left", 4)):
        axes.axvline(threshold, color="page:red", linewidth=0.9, linestyle=(0, (3, 3)))
        place = {"textcoords": "offset points", "horizontalalignment": side}
        axes.annotate(word, (threshold, -0.9), (shift, 0), color="page:red", **place)
    axes.set(xscale="log", xlim=(least, most), ylim=(len(ratios) - 0.4, -1.2), xlabel="gradient norm / weight norm")
    axes.set_yticks(range(len(ratios)), list(ratios), color="page:ink")
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    return inline_svg(figure, name=name)


@style.context(STYLE)
def norms_histogram(name: str, norms: Sequence[float], *, mean_norm: float) -> Markup:
    """The number of samples by the norm of their gradient, and a line at the norm of their mean."""
    positive = [norm for norm in norms if 0 < norm < np.inf]
    figure = Figure(figsize=(9, 2.4))
    axes = figure.subplots()
    axes.set(xscale="log", xlabel="norm of a sample's gradient", ylabel="samples")
    if positive:
        axes.hist(positive, np.geomspace(0.99 * min(positive), 1.01 * max(positive), 41), color="page:blue", alpha=0.75)
    if mean_norm > 0:
        axes.axvline(mean_norm, color="page:amber")
        place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "verticalalignment": "top"}
        axes.annotate("norm of their mean", (mean_norm, 1), (5, -3), color="page:amber", **place)
    _set_log_ticks(axes.xaxis)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return inline_svg(figure, name=name)


@style.context([STYLE, {"axes.grid": False, "axes.spines.bottom": False, "xtick.major.size": 0}])
def matrix(name: str, values: np.ndarray, *, rows: Mapping[str, int], columns: Mapping[str, int]) -> Markup:
    """The absolute values of a matrix on a logarithmic scale of three decades. `rows`, `columns`: block -> size, in order."""
    magnitudes = np.abs(values)
    most = max(float(magnitudes.max()), np.finfo(np.float32).tiny)
    figure = Figure(figsize=(9, 2.6))
    axes = figure.subplots()
    scale = LogNorm(1e-3 * most, most, clip=True)
    image = axes.imshow(magnitudes, aspect="auto", cmap="magma", interpolation="nearest", norm=scale)
    for set_ticks, draw_line, blocks in ((axes.set_yticks, axes.axhline, rows), (axes.set_xticks, axes.axvline, columns)):
        sizes = np.array(list(blocks.values()))
        ends = sizes.cumsum() - 0.5
        set_ticks(ends - sizes / 2, list(blocks))
        for end in ends[:-1]:
            draw_line(end, color="page:card", linewidth=1.2)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.02)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.outline.set_visible(False)
    return inline_svg(figure, name=name)


class Dimension(NamedTuple):
    """What is drawn of one dimension, or of a state and an action that share it. Colours are those of the page."""

    title: str
    curves: Sequence[tuple[str, np.ndarray, np.ndarray]]  # colour, times (t,), values (t,)
    samples: Mapping[str, np.ndarray]  # colour -> all values (n,), for the histogram
    limits: tuple[float, float]  # ends of the axis of values
    quantiles: tuple[float, float]


@style.context([STYLE, {"figure.constrained_layout.use": False}])
def dimension_grid(name: str, dimensions: Sequence[Dimension], *, columns: int) -> Markup:
    """Small plots: values over time and, on the same axis, their histogram; between `limits`, with lines at `quantiles`."""
    rows, width = -(-len(dimensions) // columns), (GRID_WIDTH - GRID_GAP * (columns - 1)) / columns
    height = rows * (GRID_TITLE + GRID_HEIGHT) + 4
    figure = Figure(figsize=(GRID_WIDTH / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, GRID_WIDTH), ylim=(height, 0))  # one unit is a point; y points down
    latest = max((float(times[-1]) for one in dimensions for _, times, _ in one.curves), default=1.0) or 1.0
    for index, dimension in enumerate(dimensions):
        row, column = divmod(index, columns)
        corner = (column * (width + GRID_GAP), row * (GRID_TITLE + GRID_HEIGHT) + GRID_TITLE)
        _draw_dimension(axes, dimension, corner=corner, width=width - GRID_NUMBER, latest=latest)
    return inline_svg(figure, name=name)


def _draw_dimension(axes: Axes, one: Dimension, *, corner: tuple[float, float], width: float, latest: float) -> None:
    (left, top), (low, high) = corner, one.limits

    def height(values: np.ndarray) -> np.ndarray:
        return top + GRID_HEIGHT * (1 - np.clip((values - low) / (high - low), -0.04, 1.04))

    axes.text(left, top - 5, one.title, fontsize=8.2, color="page:ink")
    axes.hlines([top, top + GRID_HEIGHT], left, left + width, color="page:rule", linewidth=0.6)
    axes.hlines(height(np.array(one.quantiles)), left, left + width, color="page:quiet", linewidth=0.5, linestyle=(0, (2, 3)))
    decimals = min(6, max(0, 1 - math.floor(math.log10(high - low))))
    for value, y in ((high, top + 2.2), (low, top + GRID_HEIGHT + 2.2)):
        axes.text(left + width + 4, y, f"{value:.{decimals}f}", fontsize=6.6, color="page:quiet")
    lines = [(colour, *_envelope(times, values)) for colour, times, values in one.curves]
    paths = [np.stack([left + TIME_SHARE * width * t / latest, height(v)], axis=1) for _, t, v in lines]
    axes.add_collection(LineCollection(paths, colors=[f"page:{c}" for c, *_ in lines], linewidths=0.6, alpha=0.7))
    start, edges = left + (TIME_SHARE + 0.03) * width, np.linspace(low, high, BINS + 1)
    for number, (colour, values) in enumerate(one.samples.items()):
        counts = np.sqrt(np.histogram(np.clip(values, low, high), edges)[0])
        x = start + (left + width - start) * np.repeat(counts / counts.max(), 2)
        outline = np.stack([[start, *x, start], height(np.repeat(edges, 2))], axis=1)
        look = {"facecolor": "none", "edgecolor": f"page:{colour}"} if number else {"facecolor": f"page:{colour}", "alpha": 0.4}
        axes.add_collection(PolyCollection([outline], linewidths=0.7 if number else 0, **look))  # a second one as its outline


def _envelope(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve with fewer points: the least and the greatest value of each of ENVELOPE stretches, so that no spike is lost."""
    if len(values) <= 2 * ENVELOPE:
        return times, values
    stretches = np.array_split(np.arange(len(values)), ENVELOPE)
    kept = np.concatenate([sorted((part[values[part].argmin()], part[values[part].argmax()])) for part in stretches])
    return times[kept], values[kept]


def inline_svg(figure: Figure, *, name: str) -> Markup:
    """The figure as an <svg> element whose ids are unique on its page if `name` is. Equal figures give equal text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # it would hold a date and links
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg[svg.index("<svg") :], count=1)
    # "axes_1" and the like are the same in every figure, those of images in equal images; they are used nowhere.
    svg = re.sub(r'(<g|<image\b[^>]*?) id="[^"]*"', r"\1", svg)
    svg = svg.replace("xlink:href", "href")
    # "font-family: 'DejaVu Sans', ..."; before matplotlib 3.11, "font: 9px 'DejaVu Sans', ..."
    svg = re.sub(r"(font(?:-family)?: (?:(?:\d+ )?[\d.]+px )?)'[^;\"]*", r"\1var(--sans)", svg)
    for colour, placeholder in PLACEHOLDERS.items():
        svg = svg.replace(placeholder, f"var(--{colour})")
    return Markup(svg)
