"""The page gradients.html: what gradients.json holds in, pictures of it and one self-contained HTML page around them out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vla_mini.pages import page
from vla_mini.pages.drawings import Box, Depth, flow_plot, graph_drawing, histogram, matrix
from vla_mini.pages.pictures import heat_map, photograph
from vla_mini.pages.sheets import Bars, Cell, sheet
from vla_mini.pages.versions import versions

INPUTS = {"vision": "pixels", "language": "words", "state": "state values"}  # what enters which component first
MOST_LINES = 6  # about the modules within a component, in the drawing of the graph
MOST_KINDS = 8
SAMPLES_IN_A_ROW = 6


class Look(NamedTuple):
    """One scene under one instruction, and how far the action hangs on what."""

    scene: int
    instruction: str
    image: np.ndarray  # uint8 (h, w, 3)
    heat: np.ndarray  # (h, w)
    target: np.ndarray | None  # mask of the named object, bool (h, w)
    words: list[tuple[str, float]]
    state: list[tuple[str, float]]
    on_target: float | None
    on_others: float | None
    on_each_other: list[float]


class Sample(NamedTuple):
    """One sample of the batch, with the norm of its gradient."""

    image: np.ndarray  # uint8 (h, w, 3)
    instruction: str
    norm: float


def figures(
    results: Mapping[str, Any], *, looks: Sequence[Look], samples: Sequence[Sample], jacobian: np.ndarray
) -> dict[str, str]:
    """The pictures, by name, as inline SVGs: scene_0, scene_1 ..., flow, norms, samples, graph, jacobian.

    - results: what gradients.json holds
    - looks: the scenes to show; those of one scene stand side by side
    - samples: those with the largest gradients
    - jacobian: (rows, columns) as `results["jacobian"]` names them
    """
    scenes = dict.fromkeys(look.scene for look in looks)
    return {
        **{f"scene_{scene}": _scene([look for look in looks if look.scene == scene]) for scene in scenes},
        "flow": _flow_plot(results),
        "norms": _norms(results["per_sample"]),
        "samples": _largest(samples),
        "graph": _graph_drawing(results["graph"]),
        "jacobian": _matrix(results["jacobian"], jacobian),
    }


def gradients_page(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The page; `pictures` are the figures above."""
    wide = {name: f"<div class=wide>{svg}</div>" for name, svg in pictures.items()}
    parts = [
        _headline(results),
        _looks([svg for name, svg in wide.items() if name.startswith("scene_")]),
        _flow(results, wide["flow"]),
        _per_sample(results["per_sample"], wide["norms"], wide["samples"]),
        _graph(results["graph"], wide["graph"]),
        _jacobian(results["jacobian"], wide["jacobian"]),
        _modes(results["inference"]),
        page.section("Where it comes from", "", page.folded("Versions", versions())),
    ]
    return page.page(f"vla-mini · gradients · {results['policy']}", parts)


def _headline(results: Mapping[str, Any]) -> str:
    share, flags = results["on_target_share"], _flagged(results["depth"])
    figures = {
        "parameters": f"{results['num_parameters']:,}",
        "layers flagged": f"{len(flags)} of {len(results['depth'])}",
        "nodes in the graph": f"{results['graph']['num_nodes']:,}",
        "gradient noise scale": _figure(results["per_sample"]["gradient_noise_scale"]),
        "this page took": f"{results['seconds']:.0f} s",
    }
    if share is None:
        number, unit, text = "–", "", "Where the objects are is not known here, so nothing can be said about where it looks."
    else:
        number, unit = f"{100 * share:.0f}", "% on target"
        text = (
            f"In so many of {results['num_pairs']} pairs of a scene and an instruction, the action hangs more on a pixel of "
            "the object that is named than on a pixel of the others."
        )
    return page.header(f"gradients · {results['policy']}", number=number, unit=unit, text=text, figures=figures, hero=None)


def _looks(scenes: Sequence[str]) -> str:
    text = (
        "Vector-Jacobian products of the action chunk, one for each dimension of an action, added up over the chunk; their "
        "magnitudes are added. Bright pixels, and long bars, are what the action hangs on; the line is drawn around the named "
        "object. Blue: words, by the length of the product. Amber: the state, for one standard deviation of each."
    )
    return page.section("One scene, two instructions", text, *scenes)


def _scene(looks: Sequence[Look]) -> str:
    """The scene as the camera sees it, then where each instruction makes the policy look."""
    cells = [Cell(photograph(looks[0].image), "the scene", note="What the camera sees.")]
    for look in looks:
        png = heat_map(look.image, look.heat, outline=look.target)
        bars = (Bars(look.words, "blue"), Bars(look.state, "amber"))
        description = f"where it looks: {look.instruction}"
        cells.append(Cell(png, description, look.instruction or "(no instruction)", _contrast(look), bars))
    return sheet(cells, columns=3)


def _contrast(look: Look) -> str:
    if look.on_target is None or look.on_others is None:
        return ""
    if not look.on_others:
        return "nothing on the others"
    each = ", ".join(_times(look.on_target, mean) for mean in look.on_each_other)
    apart = f" (one by one: {each})" if len(look.on_each_other) > 1 else ""
    return f"a pixel of the named object weighs {_times(look.on_target, look.on_others)} × one of the others{apart}"


def _times(value: float, other: float) -> str:
    ratio = value / other if other else float("inf")
    return "over 10,000" if ratio > 1e4 else f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _flow(results: Mapping[str, Any], picture: str) -> str:
    rows = [
        (name, _figure(flow["grad_norm"]), _figure(flow["weight_norm"]), _figure(flow["ratio"]), _verdict(flow))
        for name, flow in results["components"].items()
    ]
    text = (
        f"The gradient of the mean loss over {results['samples']} samples, beside the weights that it is to move, in the order "
        f"of the forward pass. {results['thresholds']['why']}"
    )
    return page.section(
        "Gradient flow", text, picture, page.table(("component", "gradient norm", "weight norm", "ratio", ""), rows)
    )


def _flow_plot(results: Mapping[str, Any]) -> str:
    thresholds, layers = results["thresholds"], results["depth"]
    depths = [Depth(layer["name"], _number(layer["ratio"]), layer["vanishing"] or layer["exploding"]) for layer in layers]
    return flow_plot("flow", depths, vanishing=thresholds["vanishing"], exploding=thresholds["exploding"])


def _flagged(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    return [layer["name"] for layer in layers if layer["vanishing"] or layer["exploding"]]


def _verdict(flow: Mapping[str, Any]) -> str:
    return "vanishing" if flow["vanishing"] else "exploding" if flow["exploding"] else "fine"


def _per_sample(result: Mapping[str, Any], histogram_of_norms: str, largest: str) -> str:
    norms = result["norms"]
    how = "by vmap(grad)" if result["method"] == "vmap" else f"one by one, since vmap refuses: {result['reason']}"
    figures = {
        "median norm": _figure(float(np.median(norms))),
        "largest": _figure(max(norms)),
        "norm of their mean": _figure(result["mean_norm"]),
        "noise scale": _figure(result["gradient_noise_scale"]),
        "mean minus batch": f"{result['mean_minus_batch_max_abs']:.0e}",
    }
    text = (
        f"The gradients of {len(norms)} samples, {how}, in {1000 * result['seconds']:,.0f} ms. Their mean is the batch's "
        "gradient. The noise scale, trace(Σ) / |g|² (McCandlish et al. 2018), is the batch size beyond which larger batches "
        "help little."
    )
    loudest = page.quiet("The samples with the largest gradients: what the policy finds hardest, or has right least.")
    return page.section("Sample by sample", text, page.facts(figures), histogram_of_norms, loudest, largest)


def _norms(result: Mapping[str, Any]) -> str:
    mean = result["mean_norm"]
    return histogram("norms", result["norms"], label="norm of a sample's gradient", mark=mean, marked="norm of their mean")


def _largest(samples: Sequence[Sample]) -> str:
    cells = [
        Cell(photograph(sample.image), sample.instruction, sample.instruction, f"norm {_figure(sample.norm)}")
        for sample in samples
    ]
    return sheet(cells, columns=SAMPLES_IN_A_ROW)


def _graph(graph: Mapping[str, Any], picture: str) -> str:
    kinds = [(f"{name} {count}", float(count)) for name, count in graph["by_kind"].items()][:MOST_KINDS]
    text = (
        f"What autograd recorded on the way to the loss: {graph['num_nodes']:,} nodes, grouped by the module whose forward "
        "made them. Data flows to the right; gradients flow back along the same lines, and where none enters, they stop: "
        "what lies before is frozen or detached."
    )
    commonest = page.quiet("The commonest kinds of node:") + page.bars(kinds, most=kinds[0][1])
    return page.section("The graph", text, picture, commonest)


def _graph_drawing(graph: Mapping[str, Any]) -> str:
    inputs = {part: source for part, source in INPUTS.items() if part in graph["components"]}
    parts = [*inputs, *(name for name in graph["components"] if name not in inputs)]
    boxes = [*map(Box, inputs.values()), *(Box(name, _inside(graph, name)) for name in parts)]
    edges = [*((source, part) for part, source in inputs.items()), *map(tuple, graph["edges"])]
    return graph_drawing("graph", boxes, edges)


def _inside(graph: Mapping[str, Any], component: str) -> list[str]:
    """A component's nodes, and those of the modules within it, two levels deep; a last line stands for those left out."""
    inside: dict[str, int] = {}
    for name, count in graph["modules"].items():
        if name.startswith(f"{component}."):
            first, *rest = name.removeprefix(f"{component}.").split(".")
            short = f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first
            inside[short] = inside.get(short, 0) + count
    lines = [f"{name} · {count}" for name, count in inside.items()]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{len(lines) - MOST_LINES + 1} more"]
    return [f"{graph['components'][component]} nodes", *lines]


def _jacobian(result: Mapping[str, Any], picture: str) -> str:
    rows = [
        (name, f"{1000 * result[f'{key}_seconds']:.1f} ms", _bytes(result[f"{key}_peak_bytes"]), note)
        for name, key, note in (
            ("whole, by torch.func.jacrev", "jacrev", "all rows at once"),
            ("whole, row by row", "vjp", f"{result['rows']} backward passes"),
            ("one product with one vector", "product", "one backward pass"),
        )
    ]
    text = (
        f"Every number of the action chunk by every number of the state and of a reduced image: {result['rows']} × "
        f"{result['columns']}. Both ways agree to {result['max_abs_difference']:.0e}. Neither is what one needs: training and "
        "the maps above multiply this matrix by a vector, and never build it. By the full image it would have "
        f"{result['full_columns']:,} columns. The picture: magnitudes, on a logarithmic scale."
    )
    return page.section("The Jacobian, for once", text, picture, page.table(("", "time", "peak memory", ""), rows))


def _matrix(result: Mapping[str, Any], values: np.ndarray) -> str:
    return matrix("jacobian", values, rows=result["row_blocks"], columns=result["column_blocks"])


def _modes(modes: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{cost['milliseconds']:.2f} ms", _bytes(cost["saved_bytes"]), _bytes(cost["peak_bytes"]))
        for name, cost in modes.items()
        if isinstance(cost, Mapping)
    ]
    same = "The actions are the same to the last bit." if modes["equal_outputs"] else "The actions differ."
    text = f"One chunk of actions for one observation, with a graph and without. {same}"
    return page.section("What a graph costs", text, page.table(("", "time", "saved for backward", "peak memory"), rows))


def _number(value: float | None) -> float:
    return float("inf") if value is None else value  # JSON has no infinity


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _bytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB" if number else "0"
