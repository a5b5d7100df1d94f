import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from vla_mini.pages.page import picture_file
from vla_mini.pages.pictures import photograph
from vla_mini.pages.sheets import WIDTH, Bars, Cell, sheet

PNG = photograph(np.zeros((8, 8, 3), dtype=np.uint8))
SAID = 'pick "up" the <red> & very, very, very, very long cube'


def texts(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter("text"))


def test_what_was_said_is_wrapped_and_bars_are_shares_of_the_largest():
    bars = (Bars([("a", 1.0), ("bb", 4.0)], "blue"), Bars([("nothing", 0.0)], "amber"))
    svg = sheet([Cell(PNG, "a picture", SAID, "a note", bars), Cell(PNG, "another")], columns=4)
    words = [text.text for text in texts(svg)]
    said = words[: words.index("a note")]
    assert len(said) > 1 and " ".join(said) == f"“{SAID}”"
    widths = [float(bar.get("width")) for bar in ElementTree.fromstring(svg).iter("rect")]
    assert widths[0] == pytest.approx(widths[1] / 4, abs=0.1) and widths[2] == 1
    heights = [float(text.get("y")) for text in texts(svg)]
    assert min(np.diff(heights)) > 12  # no line upon another
    assert all(0 <= float(text.get("x")) < WIDTH for text in texts(svg))


def test_a_picture_of_its_own_knows_its_colours():
    svg = sheet([Cell(PNG, "a picture", SAID)], columns=1)
    assert "var(--ink)" in svg and "var(" not in picture_file(svg)
    assert "#23262a" in picture_file(svg)  # the light ink, not the dark one's
