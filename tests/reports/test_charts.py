import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from tests.reports.helpers import texts
from vla_mini.evaluation.curves import Curve
from vla_mini.reports.drawing.charts import CYCLE, PLACEHOLDERS, Panel, flow_plot, line_plot, matrix, norms_histogram
from vla_mini.reports.page import standalone

LOSS = Panel(
    "Loss",
    "optimizer step",
    {"one": [Curve(range(200), np.linspace(1, 0.1, 200).tolist())], "two": [Curve((0, 9), (0.5, 0.1))]},
)


def test_plots_are_well_formed_and_take_the_colours_of_their_page():
    plots = [
        line_plot("loss", [LOSS._replace(scale="log", smooth=True)]),
        flow_plot("flow", {"vision.stem": 1e-2, "vision.blocks": 0.0, "trunk": np.inf, "action": np.nan}),
        norms_histogram("norms", [0.0, 0.5, 2.0, np.inf], mean_norm=1.0),
        matrix("matrix", np.eye(4), rows={"a": 1, "b": 3}, columns={"c": 4}),
    ]
    words = [word for svg in plots for word in texts(ElementTree.fromstring(svg))]
    assert {"one", "two", "optimizer step", "vision.stem", "vanishing", "norm of their mean", "a", "c"} <= set(words)
    for svg in plots:
        assert "var(--quiet)" in svg and "var(--sans)" in svg and "xlink" not in svg
        assert not any(placeholder in svg for placeholder in PLACEHOLDERS.values())


def test_equal_figures_give_equal_text_and_other_names_other_ids():
    first, again, other = (line_plot(name, [LOSS]) for name in ("loss", "loss", "other"))
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (first, other)]
    assert first == again and ids[0] and not ids[0] & ids[1]


def test_a_file_of_its_own_knows_its_colours_and_has_a_margin():
    text = standalone(line_plot("loss", [LOSS, LOSS], columns=2))
    left, top, width, height = map(float, ElementTree.fromstring(text).get("viewBox").split())
    assert "var(" not in text and "#23262a" in text  # the ink of the light colours, not of the dark ones
    assert left < 0 and top < 0 and width > height


def test_labels_at_the_ends_do_not_overlap():
    curves = {name: [Curve((0, 10), (0.0, 0.9))] for name in ("one", "two", "three")}
    root = ElementTree.fromstring(line_plot("same", [Panel("", "step", curves, "percent")]))
    heights = sorted(_height(text) for text in root.iter("text") if text.text in curves)
    assert len(heights) == 3 and min(np.diff(heights)) > 9


def test_a_label_has_the_colour_of_its_curves():
    curves = {name: [Curve((0, 10), (place, place))] * 2 for place, name in enumerate("abcdefgh")} | {"a": []}
    root = ElementTree.fromstring(line_plot("panel", [Panel("heading", "step", curves, "percent")]))
    styles = {text.text: text.get("style") for text in root.iter("text")}
    expected = [*CYCLE[1:], *CYCLE[:2]]
    assert "a" not in styles and [re.search(r"fill: var\(--(\w+)\)", styles[name])[1] for name in "bcdefgh"] == expected
    drawn = [line.get("style") for line in root.iter("path") if "stroke-width: 1.6" in line.get("style", "")]
    assert [re.search(r"--(\w+)\)", line)[1] for line in drawn] == [name for name in expected for _ in range(2)]
    assert ["dasharray" in line for line in drawn] == [False] * 10 + [True] * 4


def test_an_axis_is_logarithmic_where_all_values_have_a_logarithm():
    assert LOSS._replace(scale="log").logarithmic and not LOSS.logarithmic
    for values in ((0.5, -0.1), (0.0, 0.0)):
        assert not Panel("", "", {"a": [Curve((0, 1), values)]}, "log").logarithmic


def _height(text: ElementTree.Element) -> float:
    place = text.get("y") or re.search(r"translate\([\d.]+ ([\d.]+)\)", text.get("transform"))[1]
    return float(place)


def test_a_curve_that_ends_at_zero_on_a_logarithmic_axis_does_not_collapse_the_plot():
    curves = {name: [Curve((0, 1), (0.5, last))] for name, last in (("one", 0.4), ("two", 0.0), ("three", 0.2))}
    shown = line_plot("loss", [Panel("Loss", "step", curves, "log")])
    assert "three" in shown and "two" not in shown
