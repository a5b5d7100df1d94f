import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from vla_mini.pages.plots import COLOURS, CYCLE, Curve, Panel, line_plot, panel_plot


def test_plot_is_well_formed_and_takes_the_colours_of_its_page():
    curves = {"one": Curve(range(200), np.linspace(1, 0.1, 200)), "two": Curve((0, 100), (0.5, 0.1))}
    svg = line_plot("loss", curves, log=True)
    root = ElementTree.fromstring(svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids
    assert all(name.startswith("loss-") for name in ids)
    assert not any(stand_in in svg for stand_in in COLOURS.values())
    assert "var(--blue)" in svg
    texts = {text.text: text for text in root.iter("text")}
    assert {"one", "two", "optimizer step"} <= texts.keys()


def test_labels_at_the_ends_do_not_overlap():
    curves = {name: Curve((0, 10), (0.0, 0.9)) for name in ("one", "two", "three")}
    root = ElementTree.fromstring(line_plot("same", curves, percent=True))
    heights = sorted(_height(text) for text in root.iter("text") if text.text in curves)
    assert len(heights) == 3
    assert min(np.diff(heights)) > 9


def test_a_label_has_the_colour_of_its_curves():
    curves = {name: [Curve((0, 10), (place, place))] * 2 for place, name in enumerate("abcdefgh")} | {"a": []}
    svg = panel_plot("panel", [Panel("heading", "step", curves, percent=True)])
    texts = {text.text: text.get("style") for text in ElementTree.fromstring(svg).iter("text")}
    assert "a" not in texts and [re.search(r"--(\w+)\)", texts[name])[1] for name in "bcdefgh"] == [*CYCLE[1:], *CYCLE[:2]]
    lines = [line.get("style") for line in ElementTree.fromstring(svg).iter("path") if "fill: none" in line.get("style", "")]
    drawn = [line for line in lines if "stroke-width: 1.4" in line]
    assert [re.search(r"--(\w+)\)", line)[1] for line in drawn] == [name for name in (*CYCLE[1:], *CYCLE[:2]) for _ in range(2)]
    assert ["dasharray" in line for line in drawn] == [False] * 10 + [True] * 4


def _height(text: ElementTree.Element) -> float:
    place = text.get("y") or re.search(r"translate\([\d.]+ ([\d.]+)\)", text.get("transform"))[1]
    return float(place)
