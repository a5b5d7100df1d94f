"""Camera images and heat maps with text and bars below them: arrays, words and numbers in, one inline SVG out."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from vla_mini.reports.drawing.charts import STYLE, inline_svg

OUTLINE = "#78ffbe"
WIDTH, GAP = 648.0, 16.0  # points: of a row, and between its images
BAR_LINE, BAR_LETTER = 10.8, 5.1  # points: the distance of two bars, and the mean width of a letter before them


class Cell(NamedTuple):
    """An image and what stands below it."""

    image: np.ndarray  # uint8 (h, w, 3)
    outline: np.ndarray | None = None  # bool (h, w): a line is drawn around these pixels
    title: str = ""
    note: str = ""
    bars: Mapping[str, Sequence[tuple[str, float]]] = {}  # colour -> named values, drawn as fractions of the largest of them


def heat_map(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """`heat` (h, w), at least 0, in bright colours over the darkened image, uint8 (h, w, 3).

    The scale ends at the 99.9th percentile and follows the square root, so that small values can be distinguished, too.
    """
    most = max(float(np.quantile(heat, 0.999)), np.finfo(np.float32).tiny)
    strength = np.sqrt(np.clip(heat / most, 0, 1))[..., None]
    colours = 255 * matplotlib.colormaps["inferno"](0.25 + 0.7 * strength[..., 0])[..., :3]
    grey = image.astype(np.float32).mean(axis=-1, keepdims=True)
    return np.uint8((1 - strength) * 0.55 * grey + strength * colours)


@style.context([STYLE, {"figure.constrained_layout.use": False}])
def image_grid(name: str, cells: Sequence[Cell], *, columns: int) -> Markup:
    """One row of cells, `columns` of which fill the page's width."""
    side = (WIDTH - GAP * (columns - 1)) / columns
    figure = Figure()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    height = max(_draw_cell(axes, cell, left=column * (side + GAP), side=side) for column, cell in enumerate(cells))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")  # one unit is a point; y points down
    figure.set_size_inches(WIDTH / 72, height / 72)
    return inline_svg(figure, name=name)


def _draw_cell(axes: Axes, cell: Cell, *, left: float, side: float) -> float:
    """Draw one cell and return the height of its lower end."""
    bottom = side * cell.image.shape[0] / cell.image.shape[1]
    image = axes.imshow(cell.image, extent=(left, left + side, bottom, 0), interpolation="none")
    corners = FancyBboxPatch((left, 0), side, bottom, boxstyle="round,pad=0,rounding_size=4", transform=axes.transData)
    image.set_clip_path(corners)
    if cell.outline is not None:
        rows, columns = ((np.arange(n) + 0.5) * side / cell.image.shape[1] for n in cell.outline.shape)
        axes.contour(left + columns, rows, cell.outline, levels=[0.5], colors=OUTLINE, linewidths=1.3)
    y = bottom + 7
    title = f"“{cell.title}”" if cell.title else ""
    for text, size, line_height, colour in ((title, 10.8, 15.0, "ink"), (cell.note, 8.8, 11.5, "quiet")):
        for line in textwrap.wrap(text, max(1, int(side / (0.52 * size)))):  # by the mean width of a letter
            y += line_height
            axes.text(left, y, line, fontsize=size, color=f"page:{colour}")
    letters = max((len(name) for values in cell.bars.values() for name, _ in values), default=0)
    start = left + BAR_LETTER * letters + 7
    for colour, values in cell.bars.items():
        y += 6
        most = max((value for _, value in values), default=0.0) or 1.0
        for name, value in values:
            y += BAR_LINE
            axes.text(start - 7, y, name, fontsize=8.4, color="page:quiet", horizontalalignment="right")
            axes.hlines(y - 3, start, start + (left + side - start) * value / most, colors=f"page:{colour}", linewidth=4.8)
    return y + 4
