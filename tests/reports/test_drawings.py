"""Image grids and the drawing of the graph."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest

from tests.reports.helpers import texts
from vla_mini.reports.drawing.graph import graph_drawing, in_columns, place
from vla_mini.reports.drawing.images import WIDTH, Cell, heat_map, image_grid

IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)
TITLE = 'pick "up" the <red> & very, very, very, very long cube'


def test_titles_are_wrapped_and_bars_are_fractions_of_the_largest():
    bars = {"blue": [("a", 1.0), ("bb", 4.0)], "amber": [("nothing", 0.0)]}
    svg = image_grid("grid", [Cell(IMAGE, np.eye(8, dtype=bool), TITLE, "a note", bars), Cell(IMAGE)], columns=4)
    root = ElementTree.fromstring(svg)
    words = texts(root)
    title = words[: words.index("a note")]
    assert len(title) > 1 and " ".join(title) == f"“{TITLE}”"
    lines = re.findall(r'd="M ([\d.]+) [\d.]+ *\n?L ([\d.]+) [\d.]+ *\n?" [^>]*stroke: var\(--(?:blue|amber)\)', svg)
    lengths = [float(end) - float(start) for start, end in lines]
    assert lengths[0] == pytest.approx(lengths[1] / 4, abs=0.1) and lengths[2] == 0
    places = [(float(text.get("x")), float(text.get("y"))) for text in root.iter("text")]
    assert min(np.diff([y for _, y in places])) > 8 and all(0 <= x < WIDTH for x, _ in places)  # no line upon another
    assert svg.count("<image") == 2 and "#78ffbe" in svg


def test_a_heat_map_is_bright_where_the_heat_is():
    heat = np.zeros((8, 8))
    heat[2, 3] = 1.0
    pixels = heat_map(IMAGE + 200, heat)
    assert pixels.shape == IMAGE.shape and (pixels[2, 3] != pixels[0, 0]).any()
    assert (pixels[0, 0] == pixels[7, 7]).all() and np.ptp(pixels[0, 0]) == 0  # grey
    assert (heat_map(IMAGE, np.zeros((8, 8))) == 0).all()


BOXES = {"pixels": (), "vision": ("3 nodes",), "state": ("1 node",), "trunk": ("9 nodes",), "loss": ("1 node",)}
EDGES = [("pixels", "vision"), ("vision", "trunk"), ("state", "loss"), ("trunk", "loss")]


def test_boxes_stand_in_columns_in_the_direction_of_the_data():
    graph = in_columns(BOXES, EDGES)
    assert dict(graph.nodes(data="column")) == {"pixels": 0, "vision": 1, "state": 2, "trunk": 2, "loss": 3}
    assert set(graph.edges) == set(EDGES)
    svg = ElementTree.fromstring(graph_drawing("graph", BOXES, EDGES))
    assert set(texts(svg)) == {*BOXES, "3 nodes", "1 node", "9 nodes"}


def test_long_edges_pass_columns_beside_the_boxes():
    edges = [*EDGES, ("pixels", "loss")]
    graph = in_columns(BOXES, edges)
    columns, places = dict(graph.nodes(data="column")), place(BOXES, graph)
    passed = [node for node in graph if node not in BOXES]
    assert [columns[node] for node in passed] == [1, 2] and ("pixels", "loss") not in graph.edges
    assert set(graph.edges) == {*EDGES, *pairwise(["pixels", *passed, "loss"])}
    for node in passed:
        others = [other for other in columns if columns[other] == columns[node] and other != node]
        assert others and all(not places[node].overlaps(places[other]) for other in others)


def test_an_edge_that_leads_back_is_drawn_too():
    edges = [*EDGES, ("loss", "vision")]
    strokes = [graph_drawing("graph", BOXES, some).count("stroke: var(--quiet)") for some in (EDGES, edges)]
    assert strokes == [2 * len(EDGES), 2 * len(edges)]  # a line and a head each
