"""Pictures in a row, each with what was said and bars under it: PNGs, words and numbers in, inline SVG out."""

import textwrap
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from vla_mini.pages.page import data_uri

WIDTH, GAP = 960.0, 24.0  # of a row, and between its pictures
SAID, TEXT, BAR = 22.0, 17.0, 16.0  # heights of a line of what was said, of other text, and of a bar
LABEL = 7.5  # width of a letter of a bar's name
PIXELS = "image-rendering: pixelated; clip-path: inset(0 round 6px)"


class Bars(NamedTuple):
    """A row for each named value, as long as its share of the largest."""

    values: Sequence[tuple[str, float]]
    colour: str


class Cell(NamedTuple):
    """One picture and what stands under it."""

    png: bytes
    description: str
    said: str = ""  # in quotes and in the page's ink
    note: str = ""
    bars: Sequence[Bars] = ()


def sheet(cells: Sequence[Cell], *, columns: int) -> str:
    """One row of square pictures, `columns` of which fill the page's width."""
    side = (WIDTH - GAP * (columns - 1)) / columns
    drawn = [_cell(cell, left=place * (side + GAP), side=side) for place, cell in enumerate(cells)]
    height = max(bottom for _, bottom in drawn)
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}">\n' + "\n".join(part for parts, _ in drawn for part in parts) + "\n</svg>"


def _cell(cell: Cell, *, left: float, side: float) -> tuple[list[str], float]:
    """The elements of one cell, and where it ends."""
    parts = [
        f'<image x="{left:g}" width="{side:g}" height="{side:g}" style="{PIXELS}" '
        f'href="{data_uri(cell.png, "png")}"><title>{escape(cell.description)}</title></image>'
    ]
    y = side + 6
    for lines, size, height, colour in (
        (_wrapped(f"“{cell.said}”" if cell.said else "", side, size=16.0), 16.0, SAID, "ink"),
        (_wrapped(cell.note, side, size=13.0), 13.0, TEXT, "quiet"),
    ):
        y += 2
        for line in lines:
            y += height
            parts.append(_text(line, left, y, size=size, colour=colour))
    labels = LABEL * max((len(name) for bars in cell.bars for name, _ in bars.values), default=0)
    room = side - labels - 10
    for bars in cell.bars:
        y += 9
        most = max((value for _, value in bars.values), default=0.0)
        for name, value in bars.values:
            y += BAR
            length = max(1.0, room * value / most if most else 0.0)
            parts.append(_text(name, left + labels, y, size=12.5, colour="quiet", anchor="end"))
            parts.append(
                f'<rect x="{left + labels + 10:g}" y="{y - 8:g}" width="{length:.1f}" height="7" rx="2" '
                f'style="fill: var(--{bars.colour})"/>'
            )
    return parts, y + 6


def _wrapped(text: str, width: float, *, size: float) -> list[str]:
    return textwrap.wrap(text, max(1, int(width / (0.52 * size))))  # the mean width of a letter, in its size


def _text(text: str, x: float, y: float, *, size: float, colour: str, anchor: str = "start") -> str:
    style = f"font: {size:g}px var(--sans); fill: var(--{colour}); text-anchor: {anchor}"
    return f'<text x="{x:g}" y="{y:g}" style="{style}">{escape(text)}</text>'
