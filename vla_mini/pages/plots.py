"""Curves of a training run in, inline SVG out: light grid, no box, and a name at the end of each line, not in a legend.

Colours leave as CSS variables (`var(--blue)`) and fonts as `var(--sans)`, so that the page that holds a plot decides on
both and one picture serves a light and a dark screen.
"""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

# Stand-ins that matplotlib draws with; each becomes the page's variable of that name.
COLOURS = {
    "ink": "#010203",
    "quiet": "#040506",
    "rule": "#070809",
    "card": "#0a0b0c",
    "blue": "#010101",
    "green": "#020202",
    "red": "#030303",
    "amber": "#040404",
    "violet": "#050505",
    "teal": "#060606",
}
MANY = 60  # points of one curve: too many to mark each
CYCLE = ("blue", "amber", "green", "violet", "red", "teal")
DASHES = ("-", "--", ":")  # for curves beyond the colours
STYLE = {
    "svg.fonttype": "none",  # real text: it takes the page's font, and can be searched
    "font.size": 9.5,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["quiet"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["quiet"],
    "ytick.color": COLOURS["quiet"],
    "xtick.major.size": 3,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
    "text.color": COLOURS["ink"],
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


class Curve(NamedTuple):
    """What was logged under one name: values over optimizer steps."""

    steps: Sequence[float]
    values: Sequence[float]


class Panel(NamedTuple):
    """Several runs of several variants over one another: the curves of one name share its colour."""

    heading: str
    label: str  # of the horizontal axis
    curves: Mapping[str, Sequence[Curve]]  # over whatever the label says
    percent: bool = False  # else logarithmic, where all is above 0


def line_plot(
    name: str,
    curves: Mapping[str, Curve],
    *,
    log: bool = False,
    percent: bool = False,
    smooth: bool = True,
    mark_best: bool = False,
) -> str:
    """An <svg> of the curves over the training step, each labelled at its end.

    - name: unique on its page; the ids inside the SVG begin with it.
    - percent: values are fractions, drawn on an axis from 0 to 100 %.
    - smooth: a curve of many points is drawn faintly under its running mean, else as it is.
    - mark_best: a ring and a word at the highest point of the first curve, the earliest of several.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.subplots()
        _set_up(axes, "optimizer step", log=log, percent=percent)
        for colour, curve in zip(CYCLE, curves.values(), strict=False):
            _draw(axes, curve, COLOURS[colour], smooth=smooth)
        axes.margins(x=0.02)
        axes.set_xlim(left=0)
        if mark_best:
            _mark_best(axes, next(iter(curves.values())))
        figure.draw_without_rendering()  # settles the limits that the labels are placed by
        if len(curves) > 1:  # else the heading says what it is
            _label_ends(axes, curves, colours=dict(zip(curves, CYCLE, strict=False)))
        return inline_svg(figure, name=name)


def panel_plot(name: str, panels: Sequence[Panel], *, columns: int = 1) -> str:
    """An <svg> of the panels, `columns` in a row, each with its variants named at its right. More than there are colours
    are told apart by dashes."""
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * columns, 2.9 * rows), layout="constrained")
        figure.get_layout_engine().set(hspace=0.06, wspace=0.06)
        for place, panel in enumerate(panels, start=1):
            _draw_panel(figure.add_subplot(rows, columns, place), panel, headed=len(panels) > 1)
        figure.draw_without_rendering()  # settles the limits that the labels are placed by
        for axes, panel in zip(figure.axes, panels, strict=True):
            ends = {variant: curves[0] for variant, curves in panel.curves.items() if curves}
            _label_ends(axes, ends, colours=dict(zip(panel.curves, cycle(CYCLE), strict=False)))
        return inline_svg(figure, name=name)


def _draw_panel(axes: Axes, panel: Panel, *, headed: bool) -> None:
    log = not panel.percent and all(value > 0 for curves in panel.curves.values() for curve in curves for value in curve.values)
    _set_up(axes, panel.label, log=log, percent=panel.percent)
    if headed:
        axes.set_title(panel.heading, loc="left", fontsize=9.5, color=COLOURS["ink"])
    for number, curves in enumerate(panel.curves.values()):
        style = {"color": COLOURS[CYCLE[number % len(CYCLE)]], "linestyle": DASHES[number // len(CYCLE) % len(DASHES)]}
        for x, y in curves:
            many = len(x) > MANY
            values = _running_mean(np.asarray(y), window=len(y) // 40 * 2 + 1) if many and not panel.percent else y
            axes.plot(x, values, linewidth=1.4, marker=None if many else "o", markersize=2, **style)
    axes.margins(x=0.02)
    axes.set_xlim(left=0)


def _set_up(axes: Axes, label: str, *, log: bool, percent: bool) -> None:
    if log:
        _logarithmic(axes)
    if percent:
        axes.set_ylim(-0.02, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel(label)


def _draw(axes: Axes, curve: Curve, colour: str, *, smooth: bool) -> None:
    if smooth and len(curve.steps) > MANY:
        window = len(curve.values) // 40 * 2 + 1
        axes.plot(*curve, color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(curve.steps, _running_mean(np.asarray(curve.values), window=window), color=colour)
    else:
        axes.plot(*curve, color=colour, marker=None if len(curve.steps) > MANY else "o", markersize=2.5)


def _running_mean(values: np.ndarray, *, window: int) -> np.ndarray:
    """Centred, over `window` (odd) values, and over those there are at the ends."""
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")


def _logarithmic(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 of each decade, written as plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mark_best(axes: Axes, curve: Curve) -> None:
    best = max(range(len(curve.values)), key=lambda index: curve.values[index])
    step, value = curve.steps[best], curve.values[best]
    late = step > sum(axes.get_xlim()) / 2  # then there is room on the left
    axes.plot([step], [value], "o", markersize=8, markerfacecolor="none", markeredgecolor=COLOURS["ink"])
    axes.annotate(
        f"best {100 * value:.1f} % at {step:,.0f}",
        (step, value),
        xytext=(-6 if late else 6, -28),
        textcoords="offset points",
        horizontalalignment="right" if late else "left",
        color=COLOURS["ink"],
        bbox={"facecolor": COLOURS["card"], "edgecolor": "none", "pad": 1.5},
    )


def _label_ends(axes: Axes, curves: Mapping[str, Curve], *, colours: Mapping[str, str]) -> None:
    """Writes each curve's name beside its last point: pushed apart where two would overlap, but not above the axes."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = {label: to_axes.transform((curve.steps[-1], curve.values[-1]))[1] for label, curve in curves.items()}
    height = 0.075  # of a line of text, as a share of the axes
    places: list[float] = []
    labels = sorted(ends, key=ends.__getitem__)
    for label in labels:
        places.append(max(ends[label], places[-1] + height) if places else ends[label])
    highest = 1.0 + height
    for index in reversed(range(len(places))):
        places[index] = highest = min(places[index], highest - height)
    for label, place in zip(labels, places, strict=True):
        axes.text(1.02, place, label, color=COLOURS[colours[label]], transform=axes.transAxes, verticalalignment="center")


def inline_svg(figure: Figure, *, name: str) -> str:
    """The figure as an <svg> element that can stand beside others on one page."""
    buffer = io.StringIO()
    # No metadata: it holds a date and links, and the same curves should give the same bytes.
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'id="|href="#|url\(#', lambda match: f"{match[0]}{name}-", svg)
    svg = re.sub(r"font: ((?:\d+ )?[\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    for colour, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{colour})")
    return svg
