"""The drawing of a computational graph: boxes in columns from left to right, as the data flows, joined by curved arrows."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import networkx as nx
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from vla_mini.reports.drawing.charts import STYLE, inline_svg

# Lengths in points: font sizes and the mean widths of their letters; the distance of two lines of text; gaps.
NAME, NAME_LETTER, TEXT, TEXT_LETTER = 9.0, 5.6, 7.5, 4.2
LINE, PADDING, COLUMN_GAP, ROW_GAP = 11.0, 8.0, 38.0, 14.0


@style.context([STYLE, {"figure.constrained_layout.use": False}])
def graph_drawing(name: str, boxes: Mapping[str, Sequence[str]], edges: Sequence[tuple[str, str]]) -> Markup:
    """Boxes, name -> lines of text below the name (an input has none), joined by arrows from source to target."""
    graph = in_columns(boxes, edges)
    places = place(boxes, graph)
    area = Bbox.union(list(places.values())).padded(2)
    figure = Figure(figsize=area.size / 72)
    axes = figure.add_axes((0, 0, 1, 1), xlim=area.intervalx, ylim=area.intervaly)
    axes.set_axis_off()
    for source, target in graph.edges:
        start, middle, end = places[source].x0, places[source].x1, places[target].x0
        y0, y1 = (places[node].intervaly.mean() for node in (source, target))
        points = [(middle if source in boxes else start, y0), (middle, y0)]  # an edge passes its column as a straight line
        points += [(middle + 0.6 * COLUMN_GAP, y0), (end - 0.6 * COLUMN_GAP, y1), (end, y1)]
        path = Path(points, [Path.MOVETO, Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
        head = "-|>" if target in boxes else "-"
        axes.add_patch(FancyArrowPatch(path=path, arrowstyle=head, mutation_scale=9, color="page:quiet", linewidth=1.1))
    for box, lines in boxes.items():
        _draw_box(axes, box, lines, places[box])
    return inline_svg(figure, name=name)


def in_columns(boxes: Mapping[str, Sequence[str]], edges: Sequence[tuple[str, str]]) -> nx.DiGraph:
    """The graph, with the attribute "column" of each node and a further node wherever an edge passes a column."""
    acyclic = nx.DiGraph(edges)
    acyclic.add_nodes_from(boxes)
    while not nx.is_directed_acyclic_graph(acyclic):  # for the columns, an edge that leads back does not count
        acyclic.remove_edge(*nx.find_cycle(acyclic)[-1])
    layers = enumerate(nx.topological_generations(acyclic))  # the layer is the length of the longest path to a node
    columns = {node: number for number, nodes in layers for node in nodes}
    for node in boxes:
        if not acyclic.in_degree(node) and acyclic.out_degree(node):  # inputs stand just before their first target
            columns[node] = min(columns[target] for target in acyclic.successors(node)) - 1
    graph = nx.DiGraph()
    graph.add_nodes_from(boxes)
    for source, target in edges:
        passed = {f"{source} {number} {target}": number for number in range(columns[source] + 1, columns[target])}
        nx.add_path(graph, [source, *passed, target])
        columns |= passed
    nx.set_node_attributes(graph, columns, "column")
    return graph


def place(boxes: Mapping[str, Sequence[str]], graph: nx.DiGraph) -> dict[str, Bbox]:
    """Column by column: nodes in the order of the mean height of their sources, centred on those heights."""
    places: dict[str, Bbox] = {}
    columns, x = graph.nodes(data="column"), 0.0
    for number in range(1 + max(column for _, column in columns)):
        nodes = [node for node, column in columns if column == number]
        sources = {node: [places[source] for source in graph.predecessors(node) if source in places] for node in nodes}
        wanted = {node: fmean(box.intervaly.mean() for box in found) if found else 0.0 for node, found in sources.items()}
        sizes = {node: _box_size(node, boxes[node]) if node in boxes else (0.0, LINE) for node in nodes}
        width = max(width for width, _ in sizes.values())
        y = (sum(height + ROW_GAP for _, height in sizes.values()) - ROW_GAP) / 2 + fmean(wanted.values())
        for node in sorted(nodes, key=lambda node: -wanted[node]):
            height = sizes[node][1]
            places[node] = Bbox.from_bounds(x, y - height, width, height)
            y -= height + ROW_GAP
        x += width + COLUMN_GAP
    return places


def _box_size(name: str, lines: Sequence[str]) -> tuple[float, float]:
    letters = max(NAME_LETTER * len(name), *(TEXT_LETTER * len(line) for line in lines), 0.0)
    return letters + 2 * PADDING, LINE * (1 + len(lines)) + PADDING


def _draw_box(axes: Axes, name: str, lines: Sequence[str], box: Bbox) -> None:
    edge = "page:blue" if lines else "page:rule"
    shape = {"boxstyle": "round,pad=0,rounding_size=5", "facecolor": "page:card", "edgecolor": edge, "linewidth": 1.1}
    axes.add_patch(FancyBboxPatch(box.p0, box.width, box.height, **shape))
    left, first = box.x0 + PADDING, box.y1 - (PADDING + LINE) / 2
    axes.text(left, first, name, fontsize=NAME, fontweight="bold", verticalalignment="center_baseline")
    for number, line in enumerate(lines, start=1):
        place = {"x": left, "y": first - number * LINE, "verticalalignment": "center_baseline"}
        axes.text(s=line, **place, color="page:quiet", fontsize=TEXT)
